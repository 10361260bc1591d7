"""Codes are explained and documented; all findings are counted, and only the first are kept."""

import re
from pathlib import Path

from segmint.catalogs.findings import EXAMPLES, Code, Finding, FindingCollector, FindingLocation

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")


def test_every_code_is_in_the_docs_with_its_sentence() -> None:
    shown = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert shown == [(str(code), code.sentence) for code in Code]


def test_a_finding_names_shard_file_and_row() -> None:
    finding = FindingLocation("masks/x.parquet", 3).finding(Code.MASK_AREA, "area 7", 8, "mask 10000")
    assert finding == Finding(Code.MASK_AREA, "masks/x.parquet", "area 7", "8", 3, "mask 10000")
    assert finding.line() == "mask_area: shard 3: masks/x.parquet, mask 10000: expected area 7; found 8"
    assert FindingLocation("dataset.json").finding(Code.BAD_MANIFEST, "a", "b").line() == (
        "bad_manifest: dataset.json: expected a; found b"
    )


def test_all_findings_are_counted_and_the_first_are_kept() -> None:
    findings, more = FindingCollector(), FindingCollector()
    areas = [FindingLocation("m").finding(Code.MASK_AREA, index, 0) for index in range(EXAMPLES - 1)]
    findings.extend(iter(areas))
    more.extend([FindingLocation("m").finding(Code.MASK_AREA, "later", index) for index in range(EXAMPLES)])
    more.add(FindingLocation("m").finding(Code.BAD_COMMIT, 1, 2))
    findings.extend(more)
    assert findings.counts == {Code.MASK_AREA: 2 * EXAMPLES - 1, Code.BAD_COMMIT: 1}
    assert findings.total == 2 * EXAMPLES
    kept = list(findings)
    assert len(kept) == EXAMPLES + 1
    assert kept[0].code is Code.BAD_COMMIT, "in the order of the codes"
    assert kept[1:-1] == areas
    assert kept[-1].expected == "later"
    assert Code.MASK_AREA in findings
    assert Code.BAD_TAR not in findings
