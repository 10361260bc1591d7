"""Write infra/kuberay/prometheus.yaml from Grafana's alerts; with `--check`, fail if it is out of date.

`infra/grafana/alerts.yaml` is the only place that defines an alert. Its query and its threshold become one expression.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
ALERTS = ROOT / "infra" / "grafana" / "alerts.yaml"
MANIFEST = ROOT / "infra" / "kuberay" / "prometheus.yaml"

HEAD = """\
# For the Prometheus Operator: what it scrapes, and the alerts of infra/grafana/alerts.yaml. If your Prometheus selects
# objects by a label, such as release, add it to both. `python .ci/prometheus_rule.py` writes this file.
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: segmint
spec:
  selector:
    matchExpressions:
      # KubeRay labels its pods: head or worker.
      - {key: ray.io/node-type, operator: Exists}
  podMetricsEndpoints:
    - port: metrics
---
"""
_COMPARISONS = {"gt": ">", "lt": "<"}


def rule(alert: dict[str, Any]) -> dict[str, Any]:
    """Return the alerting rule of Prometheus for a rule of Grafana."""
    query, threshold = alert["data"]
    (condition,) = threshold["model"]["conditions"]
    (limit,) = condition["evaluator"]["params"]
    comparison = _COMPARISONS[condition["evaluator"]["type"]]
    return {
        "alert": "".join(word.capitalize() for word in alert["uid"].split("-")),
        "expr": f"({query['model']['expr']}) {comparison} {limit}",
        "for": alert["for"],
        "labels": alert["labels"],
        "annotations": alert["annotations"],
    }


def manifest() -> str:
    """Return the text of the manifest: a PodMonitor and a PrometheusRule."""
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    rules = [rule(alert) for alert in group["rules"]]
    made = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "segmint"},
        "spec": {"groups": [{"name": group["name"], "interval": group["interval"], "rules": rules}]},
    }
    return HEAD + yaml.safe_dump(made, sort_keys=False, width=120)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        MANIFEST.write_text(manifest(), encoding="utf-8")
    elif MANIFEST.read_text(encoding="utf-8") != manifest():
        raise SystemExit("infra/kuberay/prometheus.yaml is out of date: run .venv/bin/python .ci/prometheus_rule.py")
