"""Text -> token ids, words that were seen before from memory. Knows tokens, but no special ones.

A byte-level BPE cuts a text into pieces by a regular expression and looks at each piece alone. So
a text may be cut wherever all expressions of PATTERNS cut, before the tokenizer sees it, and the
ids of most pieces of an English text are known: the tokenizer is the better part of what a short
pair costs beside the engine.
"""

import json
import re
import unicodedata
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Protocol, cast

from tokenizers import Encoding, Tokenizer, models, normalizers

from service.prefix import ITEM, pack

FEW_TEXTS, SHORT = 8, 8_000
"""up to how many texts, and characters in all, are tokenised one by one: spreading so few over
threads costs more than it saves. `encode` keeps the GIL, `encode_batch` does not: on 4 million
characters the event loop stood still for 2.2 s"""
MOST, LONGEST, MOST_IDS = 32_768, 32, 8
"pieces that are remembered, their characters and their ids: 4 MB or so of English, 10 at most"
WHOLE = 128
"""characters of a piece from which on its text is tokenised whole. What is not written in ASCII has
hardly a place to be cut, and is as quick as without"""

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
    def ids(self) -> "array[int]": ...
    def within(self, characters: int) -> int: ...


class Words:
    """Encodes texts without special tokens, to the tokenizer's own ids. Thread-safe.

    Where its texts cannot be cut, or where a text cannot, the tokenizer gets all of it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bytes] = {}
        "packed ids, never none of them"
        self._cuts = _may_be_cut(tokenizer)
        self._normalizes = tokenizer.normalizer is not None
        added = tokenizer.get_added_tokens_decoder().values()
        self._added = re.compile("|".join(re.escape(token.content) for token in added) or r"(?!)")
        "which the tokenizer looks for before it cuts"

    def encode(self, texts: Sequence[str]) -> list[Tokenised]:
        cut = [self._pieces(text) for text in texts]
        whole = iter(self._whole([text for text, part in zip(texts, cut, strict=True) if not part]))
        return [_Cut(self, pieces) if pieces else next(whole) for pieces in cut]

    def packed(self, pieces: Sequence[str]) -> Sequence[bytes]:
        """Ids of each piece."""
        known = self._known
        found = [*map(known.get, pieces)]
        if all(found):
            return cast("list[bytes]", found)
        return [known.get(piece) or self._learn(piece) for piece in pieces]

    def _whole(self, texts: Sequence[str]) -> list["_Whole"]:
        if len(texts) <= FEW_TEXTS and sum(map(len, texts)) <= SHORT:
            encodings = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        else:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [_Whole(encoding) for encoding in encodings]

    def _pieces(self, text: str) -> list[str]:
        """Empty where the text is to be tokenised whole."""
        if not self._cuts or self._added.search(text):
            return []
        if self._normalizes and not unicodedata.is_normalized("NFC", text):
            return []
        pieces = _PIECE.findall(text)
        return pieces if pieces and max(map(len, pieces)) <= WHOLE else []

    def _learn(self, piece: str) -> bytes:
        ids = self._tokenizer.encode(piece, add_special_tokens=False).ids
        packed = pack(ids)
        if len(piece) <= LONGEST and 0 < len(ids) <= MOST_IDS:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[piece] = packed
        return packed

    def within(self, piece: str, characters: int) -> int:
        [whole] = self._whole([piece])
        return whole.within(characters)


class _Whole:
    __slots__ = ("_encoding", "ids")

    def __init__(self, encoding: Encoding) -> None:
        self.ids = array("i", encoding.ids)
        self._encoding = encoding

    def within(self, characters: int) -> int:
        return bisect_right(range(len(self.ids)), characters, key=self._end)

    def _end(self, token: int) -> int:
        """Of a token, in characters; it never decreases. All ends at once would be a list, made
        under the GIL: 0.1 s of a million tokens."""
        characters = self._encoding.token_to_chars(token)
        assert characters, "no special tokens in here"
        return characters[1]


class _Cut:
    __slots__ = ("_packed", "_pieces", "_words", "ids")

    def __init__(self, words: Words, pieces: Sequence[str]) -> None:
        self._words, self._pieces = words, pieces
        self._packed = words.packed(pieces)
        self.ids = array("i", b"".join(self._packed))

    def within(self, characters: int) -> int:
        count = 0
        for piece, packed in zip(self._pieces, self._packed, strict=True):
            if len(piece) > characters:
                return count + (self._words.within(piece, characters) if characters else 0)
            count, characters = count + len(packed) // ITEM, characters - len(piece)
        return count


def _may_be_cut(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer is one whose pieces are known, and looks at each of them alone."""
    return (
        isinstance(tokenizer.model, models.BPE)
        and not tokenizer.model.dropout
        and isinstance(tokenizer.normalizer, normalizers.NFC | None)
        and tokenizer.pre_tokenizer is not None
        and _cuts_as_known(json.loads(tokenizer.pre_tokenizer.__getstate__()))
        and not any(
            token.lstrip
            or token.rstrip
            or token.single_word
            or not unicodedata.is_normalized("NFC", token.content)
            for token in tokenizer.get_added_tokens_decoder().values()
        )
    )


def _cuts_as_known(before: dict[str, Any]) -> bool:
    """before: the JSON of ByteLevel, or of a Split and ByteLevel."""
    steps = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    own = [step["type"] for step in steps] == ["ByteLevel"] and steps[0]["use_regex"]
    split = [step["type"] for step in steps] == ["Split", "ByteLevel"] and (
        steps[0]["pattern"].get("Regex") in PATTERNS
        and steps[0]["behavior"] == "Isolated"
        and not steps[0]["invert"]
    )
    return bool(own or split) and not steps[-1]["add_prefix_space"]
