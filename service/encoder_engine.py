"""Token ids -> rewards of a bidirectional model. Knows arrays; knows nothing of text."""

from collections.abc import Sequence

import numpy as np

from service.bundle import Bundle
from service.errors import BundleError
from service.session import open_session, out_of_memory

MIN_TOKENS = 2
"rows are padded to this: a run over a single token takes another matrix kernel, with other bits"


class EncoderEngine:
    """An encoder graph on ONNX Runtime: rows padded on the right, with a mask.

    Every token attends to every other, so the states of a prompt depend on its response: a shared
    prefix is computed with each row and nothing is kept between runs. On CUDA a PaddedEngine runs
    the graph instead.
    """

    ahead = kept_tokens = 0

    def __init__(self, bundle: Bundle, variant: str, threads: int = 0, at_once: int = 1) -> None:
        if bundle.manifest.architecture.kind != "bidirectional":
            raise BundleError(f"not a bidirectional model: {bundle.manifest.name}")
        opened = open_session(bundle, variant, "cpu", threads, spinning=at_once == 1)
        self.at_once = at_once
        self._session = opened.ort
        self.device, self.fingerprint = opened.device, opened.fingerprint

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        """B rows -> (B,) float32 rewards; `prefix_tokens` saves nothing here."""
        longest = max(MIN_TOKENS, *map(len, rows))
        ids = np.zeros((len(rows), longest), np.int64)  # (B, T)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        lengths = np.array([[len(row)] for row in rows])  # (B, 1)
        mask = (np.arange(longest) < lengths).astype(np.int64)
        try:
            (rewards,) = self._session.run(["reward"], {"input_ids": ids, "attention_mask": mask})
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise MemoryError(str(error)) from error
        return np.asarray(rewards, np.float32)  # (B,)

    def cached_tokens(self, row: Sequence[int]) -> int:
        return 0
