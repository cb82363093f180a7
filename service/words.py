"""Text -> token ids, words that were seen before from memory. Knows tokens, but no special ones.

A byte-level BPE cuts a text into pieces by a regular expression and looks at each piece alone. So
a text may be cut wherever all expressions of PATTERNS cut, before the tokenizer sees it, and the
ids of most pieces are known: a quarter of the time that the tokenizer takes, which is the better
part of what a short pair costs beside the engine.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

from tokenizers import Encoding, Tokenizer

FEW_TEXTS = 8
"up to which texts are tokenised one by one: spreading so few over threads costs more than it saves"
MOST, LONGEST = 32_768, 32
"pieces that are remembered, and their characters: 8 MB or so"

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = frozenset(
    (
        QWEN,  # 2 and 3
        QWEN.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}"),  # 3.5
        QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),  # Llama 3
    )
)
"of a Split before ByteLevel; ByteLevel's own, GPT-2's, which GPT-NeoX and others have, is another"
_PIECE = re.compile(
    r" ?[A-Za-z]++(?![\x80-\U0010ffff])"
    r"|.+?(?:(?<=[A-Za-z])(?=[\0-@\[-`{-\x7f])|(?<=[!-~])(?= [A-Za-z])"
    r"|(?<=[!-~]\n)(?= ?[A-Za-z])|\Z)",
    re.DOTALL,
)
"""A piece ends between a letter of ASCII and what is ASCII and no letter; before a space and a
letter, where no space is before them; and between the one end of a line after what is no space and
such a space or letter. No match of the patterns goes over such a place, none looks back over it,
and normalisation joins nothing there."""


class Tokenised(Protocol):
    """A text's ids, and how many of its tokens end within its first characters."""

    @property
    def ids(self) -> list[int]: ...
    def within(self, characters: int) -> int: ...


class Words:
    """Encodes texts without special tokens, to the tokenizer's own ids. Thread-safe.

    content: the tokenizer's JSON. Where its texts cannot be cut, or where a text cannot, the
    tokenizer gets all of it.
    """

    def __init__(self, tokenizer: Tokenizer, content: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, Sequence[int]] = {}
        self._cuts = _may_be_cut(content)
        self._normalizes = content["normalizer"] is not None
        names = (re.escape(token["content"]) for token in content["added_tokens"])
        self._added = re.compile("|".join(names) or r"(?!)")
        "which the tokenizer looks for before it cuts"

    def encode(self, texts: Sequence[str]) -> list[Tokenised]:
        if self._cuts:
            return [self._encode(text) for text in texts]
        if len(texts) > FEW_TEXTS:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            return [_Whole(encoding) for encoding in encodings]
        return [self._whole(text) for text in texts]

    def _whole(self, text: str) -> "_Whole":
        return _Whole(self._tokenizer.encode(text, add_special_tokens=False))

    def _encode(self, text: str) -> Tokenised:
        if self._added.search(text) or (
            self._normalizes and not unicodedata.is_normalized("NFC", text)
        ):
            return self._whole(text)
        pieces = _PIECE.findall(text)
        known = self._known
        return _Cut(self, pieces, [known.get(piece) or self._learn(piece) for piece in pieces])

    def _learn(self, piece: str) -> Sequence[int]:
        ids = tuple(self._whole(piece).ids)
        if len(piece) <= LONGEST:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[piece] = ids
        return ids


class _Whole:
    def __init__(self, encoding: Encoding) -> None:
        self.ids: list[int] = encoding.ids
        self._encoding = encoding

    def within(self, characters: int) -> int:
        return sum(end <= characters for _, end in self._encoding.offsets)


class _Cut:
    def __init__(self, words: Words, pieces: list[str], found: list[Sequence[int]]) -> None:
        self.ids = [*chain.from_iterable(found)]
        self._words = words
        self._parts = pieces, found

    def within(self, characters: int) -> int:
        count = 0
        for piece, ids in zip(*self._parts, strict=True):
            if len(piece) > characters:
                return count + self._words._whole(piece).within(characters)
            count, characters = count + len(ids), characters - len(piece)
        return count


def _may_be_cut(content: dict[str, Any]) -> bool:
    """Whether the tokenizer is one whose pieces are known, and looks at each of them alone."""
    model, before = content["model"], content["pre_tokenizer"] or {}
    steps = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
    *splits, last = steps
    known = all(
        step["type"] == "Split"
        and step["pattern"].get("Regex") in PATTERNS
        and step["behavior"] == "Isolated"
        and not step["invert"]
        for step in splits
    )
    return (
        model["type"] == "BPE"
        and not model.get("dropout")
        and (content["normalizer"] or {"type": "NFC"})["type"] == "NFC"
        and last.get("type") == "ByteLevel"
        and not last["add_prefix_space"]
        and (last["use_regex"] or len(splits) == 1)
        and known
        and not any(
            token["lstrip"] or token["rstrip"] or token["single_word"]
            for token in content["added_tokens"]
        )
    )
