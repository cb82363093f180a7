"""What may be asked for a reward. Knows forms; knows nothing of tokenizers."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import InvalidRequest, TooLong
from service.text import Encoded, Message

TURN = 32
"characters that a turn counts beside its content: a template writes about so many around it"


@dataclass(frozen=True, slots=True)
class Pair:
    """`prompt` is hashable: a string or a tuple of messages."""

    prompt: str | tuple[Message, ...]
    response: str


@dataclass(frozen=True, slots=True)
class Templated:
    """A text that a chat template was applied to before it came here."""

    text: str
    prompt: str = ""
    "what `text` begins with, where it is known which part is the prompt's"


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids that are scored as they are."""

    ids: tuple[int, ...]

    def encoded(self, vocab_size: int, max_tokens: int, field: str) -> Encoded:
        """Checked, never changed. Raises InvalidRequest or TooLong, naming `field`."""
        if not self.ids:
            raise InvalidRequest(f"{field}: there are none; send at least one", field=field)
        for token in self.ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequest(
                    f"{field}: {token} is not a token id; they go from 0 to {vocab_size - 1}",
                    field=field,
                )
        if len(self.ids) > max_tokens:
            raise TooLong(
                f"{field}: {len(self.ids)} tokens, the bundle's limit is {max_tokens}; "
                "ids are never cut, send fewer",
                field=field,
            )
        return Encoded(array("i", self.ids), prompt_tokens=0)


Asked = Pair | Templated | TokenIds


def characters(pairs: Sequence[Asked]) -> int:
    """About what the tokenizer has to read: every distinct prompt once, token ids not at all."""
    prompts, others = set[str | tuple[Message, ...]](), 0
    for pair in pairs:
        if isinstance(pair, Pair):
            prompts.add(pair.prompt)
            others += len(pair.response)
        elif isinstance(pair, Templated):
            others += len(pair.text)
    return others + sum(map(_characters, prompts))


def length(pair: Asked) -> int:
    """Characters, or token ids, of all of it."""
    if isinstance(pair, TokenIds):
        return len(pair.ids)
    if isinstance(pair, Templated):
        return len(pair.text)
    return _characters(pair.prompt) + len(pair.response)


def _characters(prompt: str | tuple[Message, ...]) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(TURN + len(turn.content) for turn in prompt)
