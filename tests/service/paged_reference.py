"""com.microsoft.PagedAttention in numpy, for onnx's reference evaluator; checks what it is given.

Written from the operator's documentation: keys and values go to the slots they are mapped to, and
each segment's queries attend, causally, to what its block table shows them.
"""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from service.blocks import Arrays, Pool

FLOATS = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}


class PagedAttention(OpRun):
    """All tokens are written before any is attended to, as the CUDA kernels launch it."""

    op_domain = "com.microsoft"
    writes_first = True

    def _run(
        self, query, key, value, key_cache, value_cache, cumulative, past, table, cos, sin, slots,
        sink, q_norm, k_norm, k_scale, v_scale, bounds,
        num_heads=None, kv_num_heads=None, scale=None, do_rotary=0, **_,
    ):  # fmt: skip
        unused = (cos, sin, sink, q_norm, k_norm, k_scale, v_scale)
        assert all(each is None for each in unused) and not do_rotary
        lengths = np.diff(cumulative)
        assert cumulative[0] == 0 and cumulative[-1] == len(query) and (lengths >= 0).all()
        assert lengths.max() <= bounds[0] and (past + lengths).max() <= bounds[1]
        written = slots[slots >= 0]
        assert len(set(written)) == len(written), "two tokens write one slot"
        keys, values = (cache.reshape(-1, *cache.shape[2:]) for cache in (key_cache, value_cache))
        before = keys.copy(), values.copy()
        for cache, new in ((keys, key), (values, value)):
            cache[written] = new[slots >= 0].reshape(-1, *cache.shape[1:])
        output = np.empty_like(query)
        for i in np.flatnonzero(lengths):
            length = lengths[i]
            where = slice(cumulative[i], cumulative[i + 1])
            own = (past[i], key[where], value[where]) if not self.writes_first else None
            shown = self._shown(
                table[i], past[i] + length, key_cache.shape[1], (keys, values), before, own
            )
            heads = query[where].reshape(length, num_heads, -1)
            output[where] = _attend(heads, *shown, num_heads // kv_num_heads, scale).reshape(
                length, -1
            )
        return output, key_cache, value_cache

    def _shown(self, table, tokens, block_tokens, after, before, own):
        """Keys and values of a segment's `tokens` tokens, (tokens, KV, D) each."""
        assert tokens <= len(table) * block_tokens, "the block table is too narrow"
        places = np.arange(tokens)
        flat = table[places // block_tokens] * block_tokens + places % block_tokens
        if own is None:
            return tuple(states[flat] for states in after)
        past, *new = own
        return tuple(
            np.concatenate([states[flat[:past]], each.reshape(-1, *states.shape[1:])])
            for states, each in zip(before, new, strict=True)
        )


class WritesLate(PagedAttention):
    """A kernel in which a segment sees its own tokens and what earlier runs wrote, no more."""

    op_domain = "com.microsoft"
    writes_first = False


WritesLate.__name__ = "PagedAttention"  # the evaluator goes by it


def _rms_norm(values, weight, epsilon):
    return values / np.sqrt((values**2).mean(-1, keepdims=True) + epsilon) * weight


class SkipSimplifiedLayerNormalization(OpRun):
    """The sum of both, and it normed: what the last output and the first are."""

    op_domain = "com.microsoft"

    def _run(self, change, total, weight, epsilon=None):
        added = (change.astype(np.float32) + total.astype(np.float32)).astype(change.dtype)
        normed = _rms_norm(added.astype(np.float32), weight.astype(np.float32), epsilon)
        nothing = np.zeros(0, np.float32)
        return normed.astype(change.dtype), nothing, nothing, added


def _attend(query, keys, values, group, scale):
    """(L, H, D) queries, the last L of the tokens whose (T, KV, D) states are given."""
    dtype = query.dtype
    query, keys, values = (each.astype(np.float32) for each in (query, keys, values))
    keys, values = (each.repeat(group, axis=1) for each in (keys, values))
    scores = np.einsum("lhd,thd->hlt", query, keys) * scale
    length, tokens = scores.shape[1:]
    future = np.arange(tokens) > np.arange(tokens - length, tokens)[:, None]
    scores = np.where(future, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e30))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hlt,thd->lhd", weights, values).astype(dtype)


class MatMul(OpRun):
    """numpy multiplies bf16 into fp32 and leaves it there."""

    op_domain = ""

    def _run(self, first, second):
        return (np.matmul(first, second).astype(first.dtype),)


class Gemm(OpRun):
    """The same of a product with a bias."""

    op_domain = ""

    def _run(self, first, second, bias=None, transB=0, **_):
        product = np.matmul(first, second.T if transB else second)
        return ((product if bias is None else product + bias).astype(first.dtype),)


OPERATORS = [SkipSimplifiedLayerNormalization, MatMul, Gemm]


class ReferenceRunner:
    """The whole exported graph on the CPU; blocks that nobody wrote hold NaN."""

    def __init__(self, graph: Path, pool: Pool, operator: type[OpRun] = PagedAttention) -> None:
        model = onnx.load(graph)
        self._session = ReferenceEvaluator(model, new_ops=[operator, *OPERATORS])
        self.runs: list[Arrays] = []
        self._caches = {}
        for entry in model.graph.input:
            kind = entry.type.tensor_type
            if "_cache_" in entry.name:
                heads = [dim.dim_value for dim in kind.shape.dim[2:]]
                shape = (pool.blocks, pool.block_tokens, *heads)
                self._caches[entry.name] = np.full(shape, np.nan, FLOATS[kind.elem_type])

    def __call__(self, feeds: Arrays) -> np.ndarray:
        self.runs.append(feeds)
        (reward,) = self._session.run(["reward"], {**feeds, **self._caches})
        return reward
