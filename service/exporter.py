"""Recorder -> Ray's metrics, and the cluster's whole page in Prometheus' text format. Knows Ray."""

import asyncio
import logging
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from http.client import HTTPException
from typing import Any

import ray
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray.serve import metrics as ray_metrics

from service.metrics import SERIES, Labels, Recorder, Series

log = logging.getLogger("reward.metrics")

PERIOD_S = 0.5
"with Ray's own report interval of 1 s, what happened is on the page within 2 s"
NODE_TIMEOUT_S = 5
NODES_AT_ONCE = 4


class Exporter:
    """Publishes what a recorder collects; made inside a replica, so that Ray adds its labels."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._series = {series: _make(series) for series in SERIES}
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                self.publish()
            except Exception:  # metrics may be lost; the replica goes on
                log.exception("metrics could not be published")

    def publish(self) -> None:
        taken = self._recorder.drain()
        for (series, labels), value in taken.added.items():
            _count(self._series[series], value, _tags(series, labels))
        for gauge, read in taken.watched.items():
            self._series[gauge].set(read())
        for (series, labels), values in taken.observed.items():
            histogram, tags = self._series[series], _tags(series, labels)
            for value in values:
                histogram.observe(value, tags=tags)


async def cluster_page(threads: Executor) -> bytes:
    """The metrics of every live node's agent, each family once. A node that is gone is left out."""
    aside = partial(asyncio.get_running_loop().run_in_executor, threads)
    nodes = await aside(ray.nodes)
    addresses = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes
        if node["Alive"]
    ]
    pages = await asyncio.gather(*(aside(fetch, address) for address in addresses))
    return await aside(merge, [page for page in pages if page is not None])


def merge(pages: Iterable[str]) -> bytes:
    """Pages in Prometheus' text format as one: one HELP and TYPE per family, all samples."""
    families: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            known = families.setdefault(family.name, family)
            if known is not family:
                known.samples += family.samples
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families:
    """What prometheus_client asks for to render families that exist already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def fetch(address: str) -> str | None:
    """A node's page; None where there is no whole one."""
    try:
        with urllib.request.urlopen(address, timeout=NODE_TIMEOUT_S) as response:
            return str(response.read().decode())
    except (OSError, HTTPException) as error:
        log.warning("no metrics from a node: %r", error)
        return None


def _make(series: Series) -> Any:
    labels: Any = series.labels  # Ray annotates tuple[str], a tuple of one
    if series.kind == "histogram":
        boundaries = list(series.buckets)
        return ray_metrics.Histogram(series.name, series.help, boundaries, tag_keys=labels)
    kind = ray_metrics.Counter if series.kind == "counter" else ray_metrics.Gauge
    return kind(series.name, series.help, tag_keys=labels)


def _count(counter: Any, value: float, tags: dict[str, str]) -> None:
    """A count of 0 is one, too. `inc` refuses it; Ray's agents do not (2.60)."""
    if value:
        counter.inc(value, tags=tags)
    else:
        counter._record(0, tags)


def _tags(series: Series, labels: Labels) -> dict[str, str]:
    return dict(zip(series.labels, labels, strict=True))
