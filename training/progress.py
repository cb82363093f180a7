"""A progress bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

LINE_EVERY_S = 10.0


def track(items: Sequence[T], title: str) -> Iterator[T]:
    """Iterate with progress on standard error."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=title)
        return
    spoken = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - spoken >= LINE_EVERY_S:
            spoken = time.monotonic()
            print(f"{title}: {done} of {len(items)}", file=sys.stderr, flush=True)
