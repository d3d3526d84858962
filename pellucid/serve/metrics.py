"""What the engines say of themselves, as Prometheus reads it: https://prometheus.io/docs/instrumenting/exposition_formats."""
from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pellucid.serve.openai import Served

COUNTS = {  # field of engine.report.Report -> what it counts
    "n_finished": "Outputs that ended by themselves", "n_cancelled": "Outputs that were given up", "n_failed": "Outputs that an error ended",
    "n_steps": "Steps of the engine", "n_prompt_tokens": "Tokens of prompts", "n_reused_tokens": "Of those, taken over from other requests",
    "n_computed_tokens": "Tokens that passed the decoder", "n_output_tokens": "Tokens written", "n_preempted": "Requests put off for lack of pages",
    "n_drafted": "Tokens proposed to follow", "n_accepted": "Of those, right", "busy_seconds": "Time spent in steps",
}
GAUGES = {
    "n_running": "Requests that run", "n_waiting": "Requests that wait", "cache_used_share": "Share of the cache's pages in use",
    "cache_bytes": "Bytes the cache may take", "queue_seconds": "Mean time from asking to the first step",
    "first_token_seconds": "Mean time from asking to the first token", "token_seconds": "Mean time between two tokens of a request",
}

DESKS = {"n_asked": "Outputs asked for", "n_refused": "Outputs refused because too many waited", "n_left": "Outputs their callers left"}


class _Engines:
    def __init__(self, served: Served) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        reports = {name: desk.model.engine.report() for name, desk in self._served.desks.items()}
        for kind, table in ((CounterMetricFamily, COUNTS), (GaugeMetricFamily, GAUGES)):
            for field, about in table.items():
                family = kind(f"pellucid_{field.removeprefix('n_')}", about, labels=["model"])
                for name, report in reports.items():
                    family.add_metric([name], getattr(report, field))
                yield family
        for field, about in DESKS.items():
            family = CounterMetricFamily(f"pellucid_http_{field.removeprefix('n_')}", about, labels=["model"])
            for name, desk in self._served.desks.items():
                family.add_metric([name], getattr(desk.counts, field))
            yield family


def metrics(served: Served) -> bytes:
    """All numbers of all models, now."""
    registry = CollectorRegistry()
    registry.register(_Engines(served))
    return generate_latest(registry)
