"""What a GPU is asked, from a seed: exact lengths, nothing shared but a group's prompt. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from loadtests.bench.workloads import Request, Workload, Writer
from service.pairs import Pair

BATCH_PAIRS, GROUP = 32, 16


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens."""

    prompt: int = 200
    response: int = 100
    group_prompt: int = 1024
    group_response: int = 256
    long_prompt: int = 6144
    long_response: int = 2048

    def divided(self, by: int) -> "Lengths":
        return Lengths(*(getattr(self, name) // by for name in self.__slots__))


def batches(write: Writer, lengths: Lengths, pairs: int) -> Workload:
    """32 pairs per request, of about 300 tokens, 8 requests at a time."""
    count = max(1, pairs // BATCH_PAIRS)
    requests = [_about(write, lengths, BATCH_PAIRS) for _ in range(count)]
    return Workload("batches", tuple(requests), in_flight=8)


def singles(write: Writer, lengths: Lengths, pairs: int) -> Workload:
    """The same pairs, one per request, 64 at a time."""
    return Workload("singles", tuple(_about(write, lengths, 1) for _ in range(pairs)), in_flight=64)


def groups(write: Writer, lengths: Lengths, pairs: int) -> Workload:
    """16 responses of 256 tokens to every prompt of 1,024, one pair per request, 128 at a time."""
    requests: list[Request] = []
    for _ in range(max(1, pairs // GROUP)):
        prompt = write.text(lengths.group_prompt)
        requests += [(Pair(prompt, write.text(lengths.group_response)),) for _ in range(GROUP)]
    return Workload("groups", tuple(requests), in_flight=128)


def long(write: Writer, lengths: Lengths, pairs: int) -> Workload:
    """Prompts of 6,144 tokens and responses of 2,048, 16 at a time."""
    texts = lengths.long_prompt, lengths.long_response
    requests = [(Pair(*map(write.text, texts)),) for _ in range(pairs)]
    return Workload("long", tuple(requests), in_flight=16)


WORKLOADS: dict[str, tuple[Callable[[Writer, Lengths, int], Workload], int]] = {
    "batches": (batches, 4096),
    "singles": (singles, 2048),
    "groups": (groups, 1024),
    "long": (long, 48),
}
"by name, with the pairs of a full run"


def _about(write: Writer, lengths: Lengths, pairs: int) -> Request:
    """Lengths a quarter up or down, so that padding has something to do."""
    return tuple(
        Pair(
            write.text(write.about(lengths.prompt, 0.25)),
            write.text(write.about(lengths.response, 0.25)),
        )
        for _ in range(pairs)
    )
