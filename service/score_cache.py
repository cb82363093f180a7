"""Rewards of recent rows, by bundle and token ids. Knows digests, not what they stand for."""

from collections import OrderedDict
from hashlib import blake2b


class ScoreCache:
    """The least recently used row is dropped first. A row is kept as a digest of 16 bytes."""

    def __init__(self, bundle_id: str, max_rows: int) -> None:
        self._bundle = blake2b(bundle_id.encode(), digest_size=16).digest()
        self._max_rows = max_rows
        self._rewards: OrderedDict[bytes, float] = OrderedDict()

    def get(self, row: bytes) -> float | None:
        """The reward of a packed row, if it is here."""
        if not self._max_rows:
            return None
        key = self._key(row)
        reward = self._rewards.get(key)
        if reward is not None:
            self._rewards.move_to_end(key)
        return reward

    def put(self, row: bytes, reward: float) -> None:
        if not self._max_rows:
            return
        self._rewards[self._key(row)] = reward
        if len(self._rewards) > self._max_rows:
            self._rewards.popitem(last=False)

    def _key(self, row: bytes) -> bytes:
        return blake2b(row, digest_size=16, key=self._bundle).digest()
