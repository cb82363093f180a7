"""A tokenizer whose special tokens nobody can write. Knows tokens; knows no conversations.

Between two special tokens, text is tokenised on its own. So segments of prompts are kept: the
prompt of a group is tokenised once, in whatever request its responses come.
"""

import json
import re
import secrets
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache
from tokenizers import Tokenizer

from service.bundle import TOKENIZER
from service.errors import BundleError
from service.words import Tokenised, Words

KEPT = 4_000_000
"""characters and ids of prompts' segments, and of conversations and what they begin with: at most
20 MB or so each"""


@dataclass(frozen=True, slots=True)
class Opening:
    """What texts begin with: sealed, and tokenised by itself."""

    begin: str
    """to the end of its last special token, where the tokenizer may be cut there: whatever follows,
    the ids of this part stay"""
    rest: int
    "characters after that"
    ids: "array[int]"
    "of all of it; where it goes on, the last of them may be others"
    begin_ids: int
    "how many of them are those of `begin`"

    @property
    def size(self) -> int:
        return len(self.begin) + self.rest + len(self.ids)


@dataclass(slots=True)
class Tokens:
    ids: "array[int]"
    inside: int
    "how many of them end within the opening that was given"


class SealedTokenizer:
    """Gives each special token a name with a secret in it, in the tokenizer and in `seal`.

    Whatever a text spells, it is ordinary text until `seal` was applied to it. Thread-safe.
    """

    def __init__(self, tokenizer_json: str) -> None:
        self.nonce = secrets.token_hex(8)
        try:
            content = json.loads(tokenizer_json)
            content["post_processor"] = content["padding"] = content["truncation"] = None
            self._names = _rename(content, self.nonce)
            self._tokenizer = Tokenizer.from_str(json.dumps(content))
            self._words = Words(self._tokenizer)
            special = [token for token in content["added_tokens"] if token["special"]]
            self._ids = {token["content"]: array("i", [token["id"]]) for token in special}
            "by the secret names"
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(f"{TOKENIZER}: cannot be read: {error!r}", field=TOKENIZER) from error
        for token in content["added_tokens"]:
            if self._tokenizer.token_to_id(token["content"]) != token["id"]:
                raise BundleError(f"{TOKENIZER}: token id {token['id']} is not where it should be")
        longest_first = sorted(self._names, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        "finds special tokens as people write them"
        split = rf"(\ue000{self.nonce}s\d+\ue001)" if _separable(content) else r"(?!)"
        self._split = re.compile(split)
        self._kept: LRUCache[str, tuple[int, array[int]]] = LRUCache(
            KEPT, getsizeof=lambda kept: kept[0] + len(kept[1])
        )
        "how many characters, and their ids"
        self._lock = threading.Lock()

    def knows(self, token_id: int) -> bool:
        return self._tokenizer.id_to_token(token_id) is not None

    def seal(self, text: str) -> tuple[str, int]:
        """The text with its special tokens under their secret names, and how many there are."""
        return self.special.subn(lambda match: self._names[match[0]], text)

    def opening(self, text: str) -> Opening:
        """A sealed text that others begin with. Segments of it are kept."""
        *closed, last = self._split.split(text)
        ids = array("i")
        for segment in closed:
            ids += self._kept_ids(segment)
        begin_ids = len(ids)
        ids += self._kept_ids(last)
        return Opening(text[: len(text) - len(last)], len(last), ids, begin_ids)

    def encode(self, opening: Opening, texts: Sequence[str]) -> list[Tokens]:
        """Ids of sealed texts that should begin with the opening.

        The ids of `opening.begin` are taken from it. A template that begins otherwise for one
        response makes a text that does not begin so: it is tokenised whole.
        """
        begin, rest = opening.begin, opening.rest
        rows = [
            (opening.ids[: opening.begin_ids], rest, self._split.split(text[len(begin) :]))
            if text.startswith(begin)
            else (array("i"), len(begin) + rest, self._split.split(text))
            for text in texts
        ]
        # re.split puts what it split at in the odd places
        plain = {piece: None for _, _, pieces in rows for piece in pieces[::2]}
        found = dict(zip(plain, self._words.encode([*plain]), strict=True))
        return [self._tokens(ids, boundary, pieces, found) for ids, boundary, pieces in rows]

    def _kept_ids(self, segment: str) -> "array[int]":
        """Of a special token, or of the text between two of them."""
        if (special := self._ids.get(segment)) is not None:
            return special
        with self._lock:
            _, ids = self._kept.get(segment, (0, None))
        if ids is None:
            [tokenised] = self._words.encode([segment])
            ids = tokenised.ids
            if len(segment) + len(ids) <= KEPT:
                with self._lock:
                    self._kept[segment] = len(segment), ids
        return ids

    def _tokens(
        self, ids: "array[int]", boundary: int, pieces: list[str], found: dict[str, Tokenised]
    ) -> Tokens:
        """Adds the pieces' tokens to `ids`. Those are inside, and so is, of the pieces, what ends
        within `boundary` characters."""
        inside = len(ids)
        for piece in pieces:
            special = self._ids.get(piece)
            tokens = found[piece].ids if special is None else special
            ids += tokens
            if len(piece) <= boundary:
                inside += len(tokens)
            elif boundary > 0 and special is None:
                inside += found[piece].within(boundary)
            boundary -= len(piece)
        return Tokens(ids, inside)


def _rename(content: dict[str, Any], nonce: str) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for token in content["added_tokens"]:
        if token["special"]:
            renamed[token["content"]] = f"\ue000{nonce}s{token['id']}\ue001"
            token["content"], token["normalized"] = renamed[token["content"]], False
    model = content["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(token, token): index for token, index in vocab.items()}
    else:  # Unigram: [[token, score], ...]
        model["vocab"] = [[renamed.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    return renamed


def _separable(content: dict[str, Any]) -> bool:
    """Whether special tokens may be taken out before the tokenizer sees the rest.

    Not where they swallow the spaces beside them, and not where the first piece of a text is
    treated in its own way (Metaspace's prepend_scheme "first").
    """

    def first_differs(part: Any) -> bool:
        if isinstance(part, list):
            return any(map(first_differs, part))
        if not isinstance(part, dict):
            return False
        return part.get("prepend_scheme") == "first" or any(map(first_differs, part.values()))

    greedy = (
        token["lstrip"] or token["rstrip"] or token["single_word"] for token in _special(content)
    )
    return not any(greedy) and not first_differs(content["pre_tokenizer"])


def _special(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [token for token in content["added_tokens"] if token["special"]]
