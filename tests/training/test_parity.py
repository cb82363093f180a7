"""torch against the exported graph, through the engine that serves."""

import numpy as np
import pytest
from transformers import AutoModel, Qwen2Config

from service.buckets import Buckets
from service.bundle import Bundle
from service.config import ServiceConfig
from service.encoder_engine import EncoderEngine
from service.engine import Engine
from service.padded_engine import PaddedEngine
from service.pairs import Pair
from service.ragged_engine import RaggedEngine
from service.scorer import Scorer, score_offline
from service.session import open_session
from service.text import Message
from tests.training.families import DECODERS, FAMILIES, MAX_TOKENS, tiny
from tests.training.paged import MEAN, source
from training.export import TOLERANCE, write_bundle
from training.model import RewardModel
from training.predict import predict
from training.run import Run

LENGTHS = sorted({1, 2, MAX_TOKENS} | {n + d for n in (4, 8, 16, 32, 64) for d in (-1, 0, 1)})


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, family_bundle) -> tuple:
    """A family's torch model and its bundle. The padding id is also the end of a turn, id 2."""
    return tiny(request.param), family_bundle(request.param)


def _engine(bundle: Bundle) -> Engine:
    causal = bundle.manifest.architecture.kind == "causal"
    return RaggedEngine(bundle, "fp32") if causal else EncoderEngine(bundle, "fp32")


def test_every_length_agrees_and_no_rank_flips(pair) -> None:
    model, bundle = pair
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 800, n).tolist() for n in LENGTHS for _ in range(6)]
    for row in rows[::3]:
        row[-1] = 2  # ends in the token that others take for padding
    expected = predict(model, rows) - np.float32(MEAN)
    engine = _engine(bundle)
    got = np.concatenate([engine.run(rows[i : i + 5]) for i in range(0, len(rows), 5)])
    assert np.abs(got - expected).max() <= TOLERANCE["fp32"]
    assert (np.argsort(got) == np.argsort(expected)).all()


def test_a_window_of_some_layers_that_no_row_reaches_cuts_nothing(run: Run, tmp_path) -> None:
    """Qwen's layers know their window, where Mistral's read the configuration's."""
    sizes = DECODERS["qwen2"].to_dict() | {"layer_types": None}
    windows = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 1}
    config = Qwen2Config.from_dict(sizes | windows)
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    model = RewardModel(AutoModel.from_config(config)).eval()
    rows = [list(range(5, 5 + length)) for length in (3, 40, MAX_TOKENS)]
    expected = predict(model, rows) - np.float32(MEAN)
    bundle = write_bundle(tmp_path, source("qwen2", run, model), run.reference())
    assert np.abs(_engine(bundle).run(rows) - expected).max() <= TOLERANCE["fp32"]


def test_fixed_shapes_give_the_same_rewards(pair) -> None:
    """As a GPU runs every family; up to the last position that the model has."""
    _, bundle = pair
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, 800, n).tolist() for n in LENGTHS]
    engine = PaddedEngine(bundle, "fp32", "cpu", Buckets(MAX_TOKENS, budget=512))
    # a mask's padding enters sums as zeros, in another order: rounding of fp32 at rewards near 1
    assert engine.run(rows) == pytest.approx(_engine(bundle).run(rows), abs=1e-5)


def test_conversations_agree_with_an_empty_system_prompt_too(pair) -> None:
    model, bundle = pair
    scorer = Scorer.open(ServiceConfig(bundle=bundle.path, device="cpu"))
    pairs = [
        Pair((Message(role="system", content=""), Message(role="user", content="Hi")), "Hello."),
        Pair("Hi", ""),
        Pair("Hi " * 200, "a long answer " * 100),
        Pair("Grüße 世界", "👋"),
    ]
    expected = predict(model, [e.ids for e in scorer.encoding.encode(pairs)]) - np.float32(MEAN)
    results = list(score_offline(scorer, pairs))
    scorer.close()
    assert [r.reward for r in results] == pytest.approx(expected.tolist(), abs=TOLERANCE["fp32"])
    assert [r.truncated for r in results] == [False, False, True, False]


@pytest.mark.parametrize("pair", DECODERS, indirect=True)
def test_the_prefix_of_a_group_may_be_computed_once(pair: tuple[object, Bundle]) -> None:
    """The padded graph takes past key/values: prompt first, the rest after it, the same bits."""
    _, bundle = pair
    session, sizes = open_session(bundle, "fp32", "cpu", 2).ort, bundle.manifest.architecture
    row = np.random.default_rng(1).integers(3, 800, (1, 40))
    states = [f"{kind}_{i}" for i in range(sizes.layers) for kind in ("key", "value")]

    def step(ids: np.ndarray, past: int, feeds: dict) -> list[np.ndarray]:
        positions = np.arange(past, past + ids.shape[1])[None]
        inputs = {
            "input_ids": ids,
            "position_ids": positions,
            "last_index": np.array([ids.shape[1] - 1]),
        }
        return session.run(["reward", *(f"present_{name}" for name in states)], inputs | feeds)

    nothing = np.zeros((1, sizes.kv_heads, 0, sizes.head_dim), np.float32)
    empty = {f"past_{name}": nothing for name in states}
    whole = step(row, 0, empty)[0][0]
    for split in (2, 17, 38):
        present = step(row[:, :split], 0, empty)[1:]
        feeds = {f"past_{name}": state for name, state in zip(states, present, strict=True)}
        assert step(row[:, split:], split, feeds)[0][0] == whole
