"""The graph that CPUs run against the padded one: in every family of decoders."""

import numpy as np
import onnx
import pytest

from service import ragged
from service.buckets import Buckets
from service.bundle import Bundle
from service.padded_engine import PaddedEngine
from service.ragged_engine import RaggedEngine
from tests.training.families import DECODERS, MAX_TOKENS, tiny
from tests.training.paged import MEAN
from training.export import GRAPH, RAGGED_GRAPH, TOLERANCE
from training.predict import predict


@pytest.fixture(scope="module", params=DECODERS)
def bundle(request, family_bundle) -> Bundle:
    return family_bundle(request.param)


def _rows() -> list[list[int]]:
    """Alone and sharing, on two levels, of every length from a single token."""
    random = np.random.default_rng(3)
    system, *prompts = random.integers(3, 800, (4, 30)).tolist()
    ends = [random.integers(3, 800, n).tolist() for n in (2, 3, 9, 17, 30, 36)]
    groups = [[*system, *prompts[i % 3], *end] for i, end in enumerate(ends * 2)]
    alone = [random.integers(3, 800, n).tolist() for n in (1, 2, 3, 16, 17, 18, MAX_TOKENS)]
    return [row[:MAX_TOKENS] for row in (*groups, *alone)]


def test_a_row_has_the_same_bits_whatever_is_shared_kept_or_cut(
    bundle: Bundle, monkeypatch
) -> None:
    rows, engine = _rows(), RaggedEngine(bundle, "fp32", 2)
    alone = [RaggedEngine(bundle, "fp32", 2).run([row])[0] for row in rows[:1]]
    alone += [engine.run([row])[0] for row in rows[1:]]
    assert engine.run(rows).tolist() == alone
    assert engine.run(rows[::-1]).tolist() == alone[::-1]  # on states that are kept
    for chunk in (3, 16):
        monkeypatch.setattr(ragged, "CHUNK_TOKENS", chunk)
        assert RaggedEngine(bundle, "fp32", 1).run(rows).tolist() == alone


def test_it_computes_what_the_padded_graph_does(bundle: Bundle) -> None:
    """To the bit, unless the runtime finds other operators to fuse, as it does with the norms of
    GPT-2 and GPT-NeoX: rounding of fp32 then, at rewards near 10."""
    rows = _rows()
    padded = PaddedEngine(bundle, "fp32", "cpu", Buckets(MAX_TOKENS, MAX_TOKENS), 2).run(rows)
    got = RaggedEngine(bundle, "fp32", 2).run(rows)
    if bundle.manifest.name.startswith("gpt"):
        assert got == pytest.approx(padded, abs=1e-5)
    else:
        assert got.tolist() == padded.tolist()


def test_rewards_are_those_of_torch(bundle: Bundle) -> None:
    rows = _rows()
    expected = predict(tiny(bundle.manifest.name), rows) - np.float32(MEAN)
    got = RaggedEngine(bundle, "fp32", 2).run(rows)
    assert np.abs(got - expected).max() <= TOLERANCE["fp32"]


def test_its_weights_are_in_the_padded_graphs_file(bundle: Bundle) -> None:
    """So a bundle is no larger, and no weight can differ."""
    names = {}
    for name in (GRAPH, RAGGED_GRAPH):
        graph = onnx.load(bundle.file(name), load_external_data=False).graph
        places = [{e.key: e.value for e in each.external_data} for each in graph.initializer]
        names[name] = {(p["location"], p["offset"], p["length"]) for p in places if p}
    assert names[RAGGED_GRAPH] <= names[GRAPH]
    assert {location for location, *_ in names[RAGGED_GRAPH]} <= {f"{GRAPH}.data"}
