"""
From plain numbers to Prometheus text, at scrape time only.

A room counts with integers and `LatencyHistogram` and offers a *source*: a callable that returns `Metric` values when
somebody scrapes. Nothing else in kvorum knows Prometheus, and nothing on the hot path takes a lock for it. The
library is imported at the first scrape: a node without the HTTP port never pays for it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from kvorum.observe.histogram import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family
    from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample: TypeAlias = tuple[dict[str, str], float | LatencyHistogram]
"""Labels and a number; a histogram for kind ``histogram``."""


class Metric(NamedTuple):
    """One family. All samples carry the same label names; a counter's name ends in ``_total``."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    samples: list[Sample]


Source: TypeAlias = Callable[[], Iterable[Metric]]


def gauge(name: str, help_text: str, value: float) -> Metric:
    """A gauge without labels."""
    return Metric(name, "gauge", help_text, [({}, value)])


def counter(name: str, help_text: str, value: float) -> Metric:
    """A counter without labels."""
    return Metric(name, "counter", help_text, [({}, value)])


def histogram(name: str, help_text: str, value: LatencyHistogram) -> Metric:
    """A histogram without labels."""
    return Metric(name, "histogram", help_text, [({}, value)])


@cache
def release() -> str:
    """Version of the installed distribution."""
    try:
        return version("kvorum")
    except PackageNotFoundError:
        return "unknown"


def build_info() -> Iterable[Metric]:
    """The source of ``kvorum_build_info``."""
    labels = {"version": release(), "python_version": platform.python_version()}
    return [Metric("kvorum_build_info", "gauge", "Always 1; the labels say what runs here.", [(labels, 1)])]


def render(sources: Iterable[Source]) -> bytes:
    """
    Everything in Prometheus text format, `build_info` and the collectors of process and interpreter included.

    Raises:
        ValueError: Two sources offer the same family; the second would hide the first.
    """
    from prometheus_client import CollectorRegistry as Registry  # noqa: PLC0415  # see the module's text
    from prometheus_client import generate_latest  # noqa: PLC0415

    registry = Registry(auto_describe=False)
    registry.register(_SourceCollector([build_info, *sources]))
    for collector in _process_collectors():
        registry.register(collector)
    return generate_latest(registry)


@cache
def _process_collectors() -> tuple[Collector, ...]:
    from prometheus_client import GCCollector, PlatformCollector, ProcessCollector  # noqa: PLC0415

    return ProcessCollector(registry=None), PlatformCollector(registry=None), GCCollector(registry=_nowhere())


def _nowhere() -> CollectorRegistry:
    """A registry for collectors that insist on registering themselves."""
    from prometheus_client import CollectorRegistry as Registry  # noqa: PLC0415

    return Registry(auto_describe=False)


class _SourceCollector:
    """Asks every source once per scrape."""

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Family]:
        seen: set[str] = set()
        for source in self._sources:
            for metric in source():
                if metric.name in seen:
                    msg = f"two sources offer the metric {metric.name}"
                    raise ValueError(msg)
                seen.add(metric.name)
                yield _family(metric)


def _family(metric: Metric) -> Family:
    from prometheus_client.core import (  # noqa: PLC0415
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    labels = list(metric.samples[0][0]) if metric.samples else []
    family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    if metric.kind == "histogram":
        family = HistogramMetricFamily(metric.name, metric.help, labels=labels)
    elif metric.kind == "counter":
        family = CounterMetricFamily(metric.name, metric.help, labels=labels)
    else:
        family = GaugeMetricFamily(metric.name, metric.help, labels=labels)
    for given, value in metric.samples:
        values = [given[label] for label in labels]
        if isinstance(family, HistogramMetricFamily):
            assert isinstance(value, LatencyHistogram), metric.name
            family.add_metric(values, _buckets(value), value.sum_s)
        else:
            assert not isinstance(value, LatencyHistogram), metric.name
            family.add_metric(values, value)
    return family


def _buckets(value: LatencyHistogram) -> list[tuple[str, float]]:
    edges = [*(repr(bound) for bound in value.bounds), "+Inf"]
    return list(zip(edges, accumulate(value.counts), strict=True))
