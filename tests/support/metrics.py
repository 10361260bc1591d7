"""Metrics as Prometheus has them."""

from segmint.infra.metrics import Metric


def exported_name(metric: Metric) -> str:
    """The name that Prometheus sees."""
    return f"ray_{metric.name}_total" if metric.kind == "counter" else f"ray_{metric.name}"
