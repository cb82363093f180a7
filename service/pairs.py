"""What may be asked for a reward. Knows forms; knows nothing of tokenizers."""

from dataclasses import dataclass

from service.errors import InvalidRequest, TooLong
from service.text import Encoded, Message


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
        return Encoded([*self.ids], prompt_tokens=0)


Asked = Pair | Templated | TokenIds


def characters(pair: Asked) -> int:
    """What is counted of a pair while it waits for the tokenizer; a prompt is encoded once."""
    if isinstance(pair, TokenIds):
        return 0
    return len(pair.text) if isinstance(pair, Templated) else len(pair.response)


def length(pair: Asked) -> int:
    """Characters, or token ids, of all of it."""
    if isinstance(pair, TokenIds):
        return len(pair.ids)
    if isinstance(pair, Templated):
        return len(pair.text)
    if isinstance(pair.prompt, str):
        return len(pair.prompt) + len(pair.response)
    return sum(len(turn.content) for turn in pair.prompt) + len(pair.response)
