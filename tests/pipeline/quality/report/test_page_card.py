"""The dataset card: front matter that YAML reads, sections of a datasheet, and nothing of the data as markup."""

import json
import re
from pathlib import Path

import pytest
import yaml

from segmint.operators.prepare.deidentify import describe_recall
from segmint.pipeline.quality.report.facts import gather_facts
from segmint.pipeline.quality.report.page import escaped, front_matter
from segmint.pipeline.quality.report.report import write_report
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.foreign_layouts import crops, encoded, put_json, write_coco, write_yolo
from tests.support.html import parse_page
from tests.support.locations import location_of
from tests.support.reported import QUICK

SECTIONS = (
    "Motivation",
    "Composition",
    "Collection process",
    "Preprocessing, cleaning and labeling",
    "Uses",
    "Distribution",
    "Maintenance",
    "Known gaps",
)


@pytest.fixture(scope="module")
def card(report_folder: Path) -> str:
    return (report_folder / "README.md").read_text(encoding="utf-8")


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def section(card: str, title: str) -> str:
    return re.split(r"^## ", card.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_the_hub_can_read_its_front_matter(card: str) -> None:
    assert front(card) == {
        "pretty_name": "street & <b>2026</b>",
        "license": ["cc-by-4.0", "other"],
        "size_categories": ["n<1K"],
        "task_categories": ["image-segmentation", "mask-generation"],
        "annotations_creators": ["machine-generated"],
        "tags": ["segment-anything", "sa-1b", "class-agnostic", "webdataset"],
        "license_name": "LicenseRef-acme",
    }


def test_it_has_the_sections_of_a_datasheet(card: str) -> None:
    assert tuple(re.findall(r"^## (.*)$", card, flags=re.MULTILINE)) == SECTIONS
    for only_a_person_knows in ("Motivation", "Uses", "Distribution", "Maintenance"):
        assert "**To be written**" in section(card, only_a_person_knows)


def test_it_is_filled_from_the_data(card: str) -> None:
    composition = section(card, "Composition")
    assert "| Images | 6 |" in composition
    assert "| Masks | 10 |" in composition
    assert "| LicenseRef-acme | 1 |" in composition
    assert "| CC-BY-4.0 | 5 |" in composition
    assert "| Africa | 1 | 1 | 2 | 2 | 20% | 2.8% |" in composition
    processing = section(card, "Preprocessing, cleaning and labeling")
    assert "| face | mtcnn | 1 | 1 |" in processing
    assert "**The built-in detectors (mtcnn) are for trials**" in processing
    assert describe_recall(["mtcnn"]) in processing
    assert "1 face by mtcnn at score 0.9 or over" in processing
    assert (
        "The weights come from round 1:\n\n- round 1: weights mobile\\_sam (SHA-256 000000000000), trained on "
        '&lt;script&gt;alert("x")&lt;/script&gt; (digest 222222222222) from vit\\_b.\n'
    ) in processing
    assert "it is not a benchmark, because its masks come from a model." in section(card, "Uses")
    gaps = section(card, "Known gaps")
    assert "2 catalog rows rejected and not in the dataset: not\\_an\\_image: 2." in gaps
    assert "1 image without masks." in gaps
    assert "The audit reported 103 findings" in gaps


def test_what_the_data_says_cannot_become_markup(card: str) -> None:
    body = card.split("---\n", 2)[2]
    assert "<script" not in body
    assert "<b>" not in body
    assert '&lt;script&gt;alert("x")&lt;/script&gt; &amp; \\*\\*Zoë\\*\\*' in body
    assert "[link](" not in body
    (row,) = [line for line in body.splitlines() if "Zoë" in line and "alert" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5  # four cells


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain, with (parentheses) and a-dash.", "plain, with (parentheses) and a-dash."),
        ("two\nlines\r\n# of text", "two lines \\# of text"),
        ("a|b `c` *d* _e_ [f]", "a\\|b \\`c\\` \\*d\\* \\_e\\_ \\[f\\]"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y&gt;"),
        ("&lt;", "&amp;lt;"),
        (7, 7),
    ],
)
def test_text_is_escaped(value: object, expected: object) -> None:
    assert escaped(value) == expected


def test_an_unknown_license_is_said_to_be_unknown(small_dataset: Path, tmp_path: Path) -> None:
    from tests.support.foreign_data import loosen

    with open_tables(location_of(loosen(small_dataset, tmp_path / "data"))) as tables:
        facts = gather_facts(tables)
    assert yaml.safe_load(front_matter(facts))["license"] == ["unknown"]
    assert facts.rejected is None
    assert facts.bytes is None


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_of_another_layout_only_what_is_known_is_said(photos: Path, tmp_path: Path, kind: str) -> None:
    pictures = [encoded(picture) for picture in crops(photos)[:3]]
    data = {"coco": write_coco, "yolo": write_yolo}[kind](tmp_path / "data", {"train": pictures})
    if kind == "coco":
        path = data / "annotations/instances_train.json"
        document = json.loads(path.read_text())
        del document["images"][0]["license"]
        put_json(path, document)
    write_report(location_of(data), location_of(tmp_path / "report"), options=QUICK)
    card = (tmp_path / "report/README.md").read_text(encoding="utf-8")
    licenses = {"coco": ["cc-by-4.0", "unknown"], "yolo": ["cc-by-4.0"]}[kind]
    assert front(card) == {
        "pretty_name": "data",
        "license": licenses,
        "size_categories": ["n<1K"],
        "task_categories": ["image-segmentation"],
        "tags": [kind],
    }
    text = card.split("---\n", 2)[2]
    assert f"in the {kind.upper()} layout" in text
    assert "lists the licenses that the data states" in section(text, "Distribution")
    for unknown in ("SA-1B layout", "keys of SA-1B", "class-agnostic", "no splits", "from a model", "catalog;"):
        assert unknown not in text
    page = parse_page((tmp_path / "report/index.html").read_text(encoding="utf-8")).text
    assert "intact" not in page
    assert "Judged on" not in page
    assert "The audit only looked for missing licenses." in page
