"""What a user gives a trainer, as README.md prints it; the proofs take their URLs from here."""

import re
from pathlib import Path

PRINTED = "http://127.0.0.1:8000"


def flags(name: str, url: str) -> str:
    """The file `name`, with the service at `url`."""
    return (Path(__file__).parent / name).read_text().replace(PRINTED, url)


def url_of(name: str, url: str) -> str:
    """The one URL in the file `name`, with the service at `url`."""
    (found,) = re.findall(rf"{re.escape(url)}\S*", flags(name, url))
    return str(found)
