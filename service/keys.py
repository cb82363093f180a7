"""API keys: who may ask. Knows a file of keys; never writes one anywhere."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from service.errors import InvalidRequest, Unauthorized

FORM = re.compile(r"[A-Za-z0-9._~-]{16,200}")
"what a URL may carry unchanged; long enough not to be guessed"


class Keys:
    """The keys that are accepted; with none of them, everybody is."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        for key in keys:
            if not FORM.fullmatch(key):
                raise InvalidRequest(
                    "api_key_file: a key is 16 to 200 letters, digits or any of . _ ~ -",
                    field="api_key_file",
                )
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """One key per line, so that an old and a new one can both be good for a while.

        Raises InvalidRequest where the file cannot be read or holds none.
        """
        if path is None:
            return cls()
        try:
            keys = path.read_text(encoding="ascii").split()
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"api_key_file: {path}: {error}", field="api_key_file") from error
        if not keys:
            raise InvalidRequest(f"api_key_file: {path} holds no key", field="api_key_file")
        return cls(keys)

    def check(self, authorization: str | None, url_key: str | None = None) -> None:
        """Raise Unauthorized unless `Bearer KEY`, or the URL's key, is one of them."""
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = [url_key] if scheme.lower() != "bearer" else [url_key, key.strip()]
        # every comparison is made, each over digests of one length: time says nothing of a key
        matches = [
            hmac.compare_digest(_digest(candidate), digest)
            for candidate in given
            if candidate
            for digest in self._digests
        ]
        if not any(matches):
            raise Unauthorized(
                'authorization: send "Bearer KEY" with one of the API keys; as key=KEY in the URL '
                "it is taken by trainers' endpoints only",
                field="authorization",
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
