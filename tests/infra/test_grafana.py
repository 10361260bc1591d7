"""The dashboard: valid, and in step with the metrics that segmint defines and that Ray has."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from segmint.infra.metrics import METRICS
from tests.support.metrics import exported_name

FILE = Path(__file__).resolve().parents[2] / "infra" / "grafana" / "segmint.json"
_NAME = re.compile(r"\bray_[a-z0-9_]+")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def queries(dashboard: dict[str, Any]) -> list[str]:
    """All expressions of the panels."""
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_every_metric_of_ours_is_shown_and_no_other_is_asked_for(dashboard: dict[str, Any]) -> None:
    asked = {name for query in queries(dashboard) for name in _NAME.findall(query) if "segmint" in name}
    assert asked == {exported_name(metric) for metric in METRICS}


def test_labels_in_the_queries_are_labels_of_the_metrics(dashboard: dict[str, Any]) -> None:
    known = {exported_name(metric): {"dataset", "SessionName", *metric.labels} for metric in METRICS}
    seen = 0
    for query in queries(dashboard):
        ours = [name for name in _NAME.findall(query) if name in known]
        grouped = re.findall(r"by \((\w+)\)", query)
        filters = re.findall(r'(\w+)=~?"', query)
        for name in ours:
            assert {*grouped, *filters} <= known[name], query
            seen += 1
    assert seen >= len(METRICS)


def test_every_other_metric_is_one_of_ray(dashboard: dict[str, Any]) -> None:
    """Ray's own dashboards ask for them, or its data library defines them, in the version that is installed."""
    asked = {name for query in queries(dashboard) for name in _NAME.findall(query) if "segmint" not in name}
    assert len(asked) > 5
    package = Path(next(iter(importlib.util.find_spec("ray").submodule_search_locations)))
    panels = package / "dashboard" / "modules" / "metrics" / "dashboards"
    sources = [path.read_text(encoding="utf-8") for path in panels.glob("*.py")]
    known = {name for source in sources for name in _NAME.findall(source)}
    assert asked <= known, asked - known


def test_panels_do_not_overlap_and_have_different_ids(dashboard: dict[str, Any]) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= taken
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_variables_in_queries_are_defined(dashboard: dict[str, Any]) -> None:
    defined = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval", "__all"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard)))
    assert used <= defined
