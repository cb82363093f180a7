"""A progress bar on a terminal, one line every few seconds elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(items: Iterable[T], title: str) -> Iterator[T]:
    """Iterate with progress on standard error."""
    interactive = sys.stderr.isatty()
    yield from tqdm(
        items, desc=title, mininterval=0.1 if interactive else 10.0, ascii=not interactive
    )
