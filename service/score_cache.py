"""Rewards of recent rows, by bundle and token ids. Knows digests, not what they stand for."""

from hashlib import blake2b

from cachetools import LRUCache


class ScoreCache:
    """The least recently used row is dropped first. A row is kept as a digest of 16 bytes."""

    def __init__(self, bundle_id: str, max_rows: int) -> None:
        self._bundle = blake2b(bundle_id.encode(), digest_size=16).digest()
        self._rewards: LRUCache[bytes, float] = LRUCache(max_rows)

    def get(self, row: bytes) -> float | None:
        """The reward of a packed row, if it is here."""
        return self._rewards.get(self._key(row)) if self._rewards.maxsize else None

    def put(self, row: bytes, reward: float) -> None:
        if self._rewards.maxsize:
            self._rewards[self._key(row)] = reward

    def _key(self, row: bytes) -> bytes:
        return blake2b(row, digest_size=16, key=self._bundle).digest()
