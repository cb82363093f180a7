"""The recorder, and pages merged."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.util.metrics import Metric

from service import metrics
from service.exporter import Exporter, fetch, merge
from service.metrics import LE, REWARD_BOUNDARIES, REWARD_BUCKET, SERIES, Recorder


def test_names_are_unique_and_say_their_unit() -> None:
    assert len({series.name for series in SERIES}) == len(SERIES)
    for series in SERIES:
        assert series.name.startswith("reward_") and series.help.endswith(".")
        timed = series.buckets and series.name != "reward_batch_rows"
        assert bool(timed) == series.name.endswith("_seconds")


def test_the_distribution_of_rewards_is_cumulative_and_gives_the_mean() -> None:
    recorder = Recorder()
    rewards = np.random.default_rng(0).normal(0, 3, 500).tolist()
    rewards += [-1.0, 0.0, 6.0]  # on a boundary: at or below it
    recorder.rewards("b", rewards)
    added = recorder.drain().added
    for boundary in REWARD_BOUNDARIES:
        expected = sum(reward <= boundary for reward in rewards)
        assert added[metrics.REWARD_BUCKET, ("b", f"{boundary:g}")] == expected
    assert added[metrics.REWARD_BUCKET, ("b", "+Inf")] == len(rewards)
    total = added[metrics.REWARD_POSITIVE, ("b",)] - added[metrics.REWARD_NEGATIVE, ("b",)]
    assert total == pytest.approx(sum(rewards))


def test_every_part_of_the_distribution_is_there_with_the_first_reward() -> None:
    """`histogram_quantile` begins a bucket where the one before it ends, and at 0 if it is missing:
    the median of these would be 1.5."""
    recorder = Recorder()
    recorder.rewards("b", [2.5, 2.6, 2.7])
    added = recorder.drain().added
    counts = {labels[1]: n for (series, labels), n in added.items() if series is REWARD_BUCKET}
    assert counts == {**dict.fromkeys(LE, 0), "3": 3, "4": 3, "6": 3, "+Inf": 3}
    assert (metrics.REWARD_NEGATIVE, ("b",)) in added  # for the sum, which is a difference


async def _published(recorder: Recorder) -> None:
    Exporter(recorder).publish()


def test_ray_takes_what_a_recorder_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of 0, too, which its counters refuse in `inc`."""
    taken: list[tuple[str, float]] = []
    record = Metric._record

    def watched(metric, value, tags=None) -> None:
        record(metric, value, tags)
        taken.append((metric.info["name"], value))

    monkeypatch.setattr(Metric, "_record", watched)
    recorder = Recorder()
    recorder.rewards("b", [2.5])  # and so buckets that hold 0 rewards
    recorder.add(metrics.PADDING, 0)
    recorder.watch(metrics.QUEUE_ROWS, lambda: 0)
    recorder.observe(metrics.ENGINE, 0.5)
    asyncio.run(_published(recorder))
    assert ("reward_padding_tokens", 0) in taken and ("reward_queue_rows", 0) in taken
    buckets = [value for name, value in taken if name == "reward_distribution_bucket"]
    assert sorted(buckets) == [0] * (len(LE) - 4) + [1] * 4  # 2.5 is in those of 3, 4, 6, +Inf


def test_draining_hands_over_once_and_gauges_stay_watched() -> None:
    recorder, waiting = Recorder(), [1, 2]
    recorder.add(metrics.PADDING, 3)
    recorder.watch(metrics.QUEUE_ROWS, lambda: len(waiting))
    recorder.observe(metrics.ENGINE, 0.5)
    first, second = recorder.drain(), recorder.drain()
    assert first.added == {(metrics.PADDING, ()): 3}
    assert first.observed == {(metrics.ENGINE, ()): [0.5]}
    assert not second.added and not second.observed
    waiting.append(3)
    assert second.watched[metrics.QUEUE_ROWS]() == 3


def test_a_recorder_nobody_drains_keeps_nothing() -> None:
    recorder = Recorder(listening=False)
    recorder.add(metrics.PADDING, 3)
    recorder.observe(metrics.ENGINE, 0.5)
    recorder.rewards("b", [1.0])
    assert not recorder.added and not recorder.observed


PAGE = """# HELP ray_x_total Things.
# TYPE ray_x_total counter
ray_x_total{node="NODE"} 2.0
# HELP ray_h Seconds.
# TYPE ray_h histogram
ray_h_bucket{node="NODE",le="1"} 1
ray_h_bucket{node="NODE",le="+Inf"} 2
ray_h_count{node="NODE"} 2
ray_h_sum{node="NODE"} 3.5
"""


def test_pages_of_two_nodes_become_one_with_one_type_per_family() -> None:
    page = merge([PAGE.replace("NODE", "a"), PAGE.replace("NODE", "b")]).decode()
    assert page.count("# TYPE ray_x_total counter") == 1
    assert page.count("# TYPE ray_h histogram") == 1
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert len(samples) == 10
    assert samples["ray_x_total", (("node", "b"),)] == 2
    assert samples["ray_h_bucket", (("le", "+Inf"), ("node", "a"))] == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nray_x_total 2.0",  # died in mid-answer
        b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
        b"\x00\x01\r\n\r\n",
        b"",
    ],
)
def test_a_node_that_does_not_answer_whole_is_left_out(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        page = threads.submit(fetch, f"http://127.0.0.1:{server.getsockname()[1]}/metrics")
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)
        assert page.result(timeout=10) is None
