"""Samples as the text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# Imported only by servers that were asked for metrics: it takes a while.
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from stepd_server.metrics.catalogue import Sample
from stepd_server.metrics.durations import Durations

__all__ = ["to_text"]


def to_text(samples: Iterable[Sample]) -> bytes:
    """The samples, family by family. Label values may be anything: they are escaped."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(samples))
    return generate_latest(registry)


class _Collector:
    """Gives the registry what was measured; nothing is kept between two scrapes."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for metric, labels, value in self._samples:
            family = families.get(metric.name)
            if isinstance(value, Durations):
                if family is None:
                    family = HistogramMetricFamily(metric.name, metric.about, labels=metric.labels)
                assert isinstance(family, HistogramMetricFamily)
                family.add_metric(labels, value.buckets, value.seconds)
            else:
                if family is None:
                    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                    family = kind(metric.name, metric.about, labels=metric.labels)
                assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
                family.add_metric(labels, value)
            families[metric.name] = family
        yield from families.values()
