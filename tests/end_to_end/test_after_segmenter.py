"""Readers and corrections handle a segmenter's masks, which may lack scores and points but have labels and prompts.

The images are made up, but a segmenter made their masks. Of each shard, the catalog's other rows were refused, because
their prompts were for another frame, or because the segmenter failed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.pipeline.corrections.proof import prove
from segmint.pipeline.engine.annotate.app import find_weights
from segmint.pipeline.export.formats import MAIN_FILES, Format
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.report.facts import gather_facts
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.annotated_pages import expect, served, start
from tests.support.browser import watch
from tests.support.builds import segmint_here
from tests.support.crash_matrix import OPERATIONS
from tests.support.everything import mentions
from tests.support.imported import masks_of
from tests.support.protocol import SAYING, DatasetPath, prompts_of, sweep_all, two_shards
from tests.support.viewed import viewing

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CORRECTIONS = ("takedown in a build", "redact", "retry", "amend", "merge", "label", "remove labels")
SOURCE = f"model:{SAYING.sha256}"


def findings(place: DatasetPath) -> list[str]:
    return [finding.line() for finding in audit_integrity(place.location).findings]


def test_each_reader_shows_what_a_mask_says() -> None:
    with two_shards(segmenter=True) as place:
        assert findings(place) == []
        rows = masks_of(place, 0)
        assert len(rows) == 20
        assert [row["label_source"] for row in rows[:5]] == [None, None, SOURCE, "import", None]
        assert [row["label_score"] for row in rows[:5]] == [None, None, 1.5, None, None]
        assert [row["predicted_iou"] for row in rows[:5]] == [None, 0.75, None, 0.9, None]
        kinds = [[prompt["kind"] for prompt in row["prompts"] or ()] for row in rows[:5]]
        assert kinds == [[], ["point", "point"], ["box"], [], ["text"]]

        sample, other = open_dataset(place.uri)
        assert (sample.id, other.id, len(sample.masks)) == (1, 4, 20)
        for mask, row in zip(sample.masks, rows, strict=True):
            names = ("label", "label_score", "label_source", "predicted_iou", "stability_score")
            assert [getattr(mask, name) for name in names] == [row[name] for name in names]
            assert mask.point_coords == ()

        with open_tables(place.location) as tables:
            facts = gather_facts(tables)
        assert facts.labels == {"import": 8, "model": 8}
        assert facts.labeled == 16
        assert facts.prompts == {"box": 8, "point": 8, "text": 8}
        assert facts.build is not None
        assert facts.build.segmenter is not None
        assert facts.build.segmenter.endswith(", made from the catalog's prompts")


def test_exports_keep_labels_their_sources_and_scores(tmp_path: Path) -> None:
    with two_shards(segmenter=True) as place:
        rows = masks_of(place, 0) + masks_of(place, 3)
        for format in Format:
            segmint_here("export", place.uri, "--format", format, "-o", tmp_path / format)
            assert (tmp_path / format / MAIN_FILES[format]).is_file()
    expected = [row["label"] or "object" for row in rows]
    for format in (Format.COCO, Format.LVIS, Format.CVAT):
        tree = json.loads((tmp_path / format / MAIN_FILES[format]).read_bytes())
        names = {category["id"]: category["name"] for category in tree["categories"]}
        assert [names[each["category_id"]] for each in tree["annotations"]] == expected
    coco = json.loads((tmp_path / "coco" / "instances.json").read_bytes())
    assert [each.get("label_source") for each in coco["annotations"]] == [row["label_source"] for row in rows]
    scores = [(each["predicted_iou"], each["stability_score"]) for each in coco["annotations"]]
    assert scores == 8 * [(None, None), (0.75, None), (None, None), (0.9, 0.8), (None, 0.5)]


@pytest.mark.long
def test_a_report_names_the_segmenter_and_not_sam(tmp_path: Path) -> None:
    with two_shards(segmenter=True) as place:
        segmint_here("report", place.uri, "-o", tmp_path / "report")
    card = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    assert "segment-anything" not in card
    assert "16 masks with a label, 8 of them from a model, 8 imported; all others are class-agnostic" in card
    assert "made from the catalog's prompts, SHA-256" in card
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Labels by source: 8 import and 8 model. Masks by kind of prompt: 8 box, 8 point and 8 text." in page


@pytest.mark.parametrize(
    "name", ["takedown", "import", *(pytest.param(name, marks=pytest.mark.long) for name in CORRECTIONS)]
)
def test_corrections_keep_what_masks_say(name: str) -> None:
    """Each is killed at every storage call in the crash matrix; here, it runs once."""
    operation = OPERATIONS[name]
    with two_shards(0, segmenter=True) as place:
        operation.before(place)
        before = masks_of(place, 3) if place.log.latest(1) else []
        operation.work(place)
        sweep_all(place)
        assert findings(place) == []
        after = {mask["segmentation"]["counts"]: mask for mask in masks_of(place, 3)}
        kept = [mask for mask in before if mask["segmentation"]["counts"] in after]
        assert kept or operation.taken or name == "import"
        for mask in kept:
            same = after[mask["segmentation"]["counts"]]
            assert (same["prompts"], same["predicted_iou"]) == (mask["prompts"], mask["predicted_iou"])
        if not operation.taken:
            return
        parts = [(place.location / part.path).read() for part in load_manifest(place.location).catalog]
        for ordinal in operation.taken:
            assert mentions(Path(place.uri), [f"image-{ordinal}"]) == []
            assert not any(prompts_of(ordinal)["prompts"][0]["label"].encode() in part for part in parts)
            assert prove(place.location, str(ordinal + 1)).found == ()


def test_the_viewer_draws_what_a_mask_was_made_from(chromium: "Browser") -> None:
    with two_shards(segmenter=True) as place, viewing(Path(place.uri)) as address:
        page = chromium.new_page()
        seen = watch(page)
        page.goto(address)
        page.goto(f"{address.split('?')[0]}#image/1")
        largest_first = sorted(masks_of(place, 0), key=lambda row: -row["area"])
        ids = [row["annotation_id"] for row in largest_first]
        for id, expected in (
            (10_001, [("circle", "point", "1.5", "2.5"), ("circle", "point outside", "3", "4")]),
            (10_002, [("rect", "prompt", "0.5", "1")]),
        ):
            page.locator("#mask-list button").nth(ids.index(id)).click()
            expect(page.locator("#mask-details")).to_contain_text(str(id))
            shapes = page.locator("#marks > :not(.crop):not(.box)")
            found = shapes.evaluate_all(
                "all => all.map((e) => [e.tagName, e.getAttribute('class'), ...['x', 'y'].map("
                "(name) => e.getAttribute(name) ?? e.getAttribute('c' + name))])"
            )
            assert [tuple(each) for each in found] == expected
            page.keyboard.press("Escape")
        assert seen.errors == []
        page.close()


@pytest.mark.usefixtures("weights")
def test_the_annotator_shows_who_set_a_label_and_what_a_mask_was_made_from(chromium: "Browser") -> None:
    with two_shards(segmenter=True) as place, served(Path(place.uri), "ann") as server:
        page = chromium.new_page()
        _, _, note = find_weights(place.location, load_manifest(place.location), None)
        assert note is not None
        assert "because a segmenter made the masks: none." in note
        start(page, server, 1)
        title = page.locator("#mask-title")
        for id, said, shapes in (
            (10_000, "Mask selected", 0),
            (10_001, "Mask selected · predicted IoU 0.75", 2),
            (10_002, "Mask selected · thing in image-0 (model)", 1),
            (10_003, "Mask selected · größte in image-0 (import) · predicted IoU 0.90", 0),
        ):
            page.locator(f"[data-key=d{id}] .pick").click()
            expect(title).to_have_text(said)
            expect(page.locator("#prompts .positive, #prompts .negative, #prompts .asked")).to_have_count(shapes)
        page.close()
