"""From plain numbers to Prometheus text."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvorum.observe.histogram import LatencyHistogram
from kvorum.observe.metrics import Metric, counter, gauge, histogram, render


def _samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_render_every_kind_can_be_parsed_back() -> None:
    """Gauges, counters and histograms arrive at Prometheus with their values and labels."""
    latency = LatencyHistogram(0.5, 2)
    for seconds in (0.1, 0.7, 0.8, 5.0):
        latency.observe(seconds)
    calls = Metric(
        "kvorum_rpc_requests_total",
        "counter",
        "Calls.",
        [({"method": "get", "code": "OK"}, 3), ({"method": "set", "code": "OK"}, 4)],
    )

    page = render(
        [lambda: [gauge("kvorum_raft_term", "Term.", 7), calls], lambda: [histogram("kvorum_x_seconds", "X.", latency)]]
    )
    samples = _samples(page)

    assert samples["kvorum_raft_term", ()] == 7
    assert samples["kvorum_rpc_requests_total", (("code", "OK"), ("method", "set"))] == 4
    assert samples["kvorum_x_seconds_bucket", (("le", "0.5"),)] == 1
    assert samples["kvorum_x_seconds_bucket", (("le", "1.0"),)] == 3
    assert samples["kvorum_x_seconds_bucket", (("le", "+Inf"),)] == 4
    assert samples["kvorum_x_seconds_count", ()] == 4
    assert samples["kvorum_x_seconds_sum", ()] == pytest.approx(6.6)


def test_render_adds_build_and_process() -> None:
    """A page without sources still tells what runs and what it uses, at every scrape."""
    for _ in range(2):
        names = {name for name, _ in _samples(render([]))}

        assert {"kvorum_build_info", "process_resident_memory_bytes", "python_gc_collections_total"} <= names


def test_render_reads_sources_at_scrape_time() -> None:
    """Each scrape asks the sources again."""
    values = iter((1, 2))

    pages = [render([lambda: [counter("kvorum_things_total", "Things.", next(values))]]) for _ in range(2)]

    assert [_samples(page)["kvorum_things_total", ()] for page in pages] == [1, 2]


def test_render_same_family_twice_is_refused() -> None:
    """Two sources cannot shadow each other."""
    with pytest.raises(ValueError, match="kvorum_a"):
        render([lambda: [gauge("kvorum_a", "A.", 1)], lambda: [gauge("kvorum_a", "A.", 2)]])


def test_render_family_without_samples_is_empty() -> None:
    """A family that has nothing to say yet does no harm."""
    assert b"kvorum_none" in render([lambda: [Metric("kvorum_none", "gauge", "None.", [])]])
