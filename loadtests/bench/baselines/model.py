"""The bundle's model as a user runs it: pad to the longest row, one session.run, no planning.

Texts become the same token ids as in the service, through its own encoder, so that all systems do
the same job; the session is ONNX Runtime's with its default options.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from pydantic import BaseModel

from service import bundle as bundles
from service.text import Encoder


class PairBody(BaseModel):
    prompt: str
    response: str


class ScoreBody(BaseModel):
    pairs: list[PairBody]


class Model:
    """`score` may be called from several threads at once."""

    def __init__(self, bundle: Path) -> None:
        opened = bundles.load(bundle)
        sizes = opened.manifest.architecture
        self._encoder = Encoder.of(opened)
        graph = opened.file(opened.manifest.variant("fp32").graph)
        self._session = onnxruntime.InferenceSession(graph)
        inputs = {entry.name for entry in self._session.get_inputs()}
        self._takes_positions = "position_ids" in inputs
        self._past = [name for name in inputs if name.startswith("past_")]
        self._past_shape = sizes.kv_heads, 0, sizes.head_dim

    def encode(self, pair: PairBody) -> list[int]:
        return self._encoder.encode(pair.prompt, pair.response).ids

    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        longest = max(2, max(map(len, rows)))
        ids = np.zeros((len(rows), longest), np.int64)  # (B, T)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        feeds = {"input_ids": ids, "last_index": np.array([len(row) - 1 for row in rows])}
        if self._takes_positions:
            feeds["position_ids"] = np.tile(np.arange(longest), (len(rows), 1))
        empty = np.zeros((len(rows), *self._past_shape), np.float32)
        (rewards,) = self._session.run(["reward"], feeds | dict.fromkeys(self._past, empty))
        return [float(reward) for reward in rewards]
