"""What detectors found in images becomes findings and counts; `test_audit` has the search of real images."""

from segmint.catalogs.findings import Code, Place
from segmint.operators.audit.privacy import StillDetected
from segmint.pipeline.audit.privacy import PrivacySummary, Search
from segmint.pipeline.statistics.values import json_value

LEFT = StillDetected(7, "face", "mtcnn", 0.9, 1, 2, 30, 40, redacted=False)
REDACTED = StillDetected(7, "plate", "clp", 0.8, 50, 60, 20, 10, redacted=True)
SEARCH = Search((LEFT, REDACTED), {})


def test_what_was_redacted_is_no_finding() -> None:
    (finding,) = SEARCH.findings(Place("shards/sa_000000.tar", 0))
    assert (finding.code, finding.image) == (Code.STILL_DETECTED, 7)
    assert finding.found == "a face by mtcnn at score 0.9"


def test_what_was_redacted_is_counted_apart() -> None:
    summary = PrivacySummary(())
    summary.add(3, [SEARCH])
    answer = summary.answer()
    assert (answer.images_checked, answer.found_total, answer.inside_regions) == (1, 1, 1)
    row = {"id": 7, "kind": "face", "detector": "mtcnn", "score": 0.9, "x": 1, "y": 2, "w": 30, "h": 40}
    assert summary.regions() == [row]
    assert [list(found.items()) for found in json_value(answer)["found"]] == [list({**row, "shard": 3}.items())]
