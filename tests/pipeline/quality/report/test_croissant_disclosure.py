"""The disclosure: facts that commits and tables record, and named gaps for what only the owner can know."""

import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import duckdb
import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import ModelTerms
from segmint.catalogs.dataset.regions import RedactionTotals
from segmint.pipeline.quality.audit.result import AssertedLicense, DetectorCounts, Licenses, PrivacyResult, verdict
from segmint.pipeline.quality.report.croissant import croissant_json, disclosure_markdown
from segmint.pipeline.quality.report.facts import DOMAINS, DetectorFact, Facts, RedactedRegions
from segmint.pipeline.quality.report.page import ReportImages, card_markdown, render_page
from segmint.pipeline.quality.report.plots import charts_of
from segmint.pipeline.quality.statistics.values import Statistics
from tests.support.html import parse_page
from tests.support.locations import location_of
from tests.support.reported import SCRIPT
from tests.support.statistics import audit_of

EU = ("1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "3.1", "3.2", "3.3")
"""Sections of the Commission's template (annex to C(2025) 5235)."""


def row(page: str, name: str) -> str:
    """The second cell of the row that starts with `name`."""
    return re.search(rf"^\| {re.escape(name)}[^|]*\| (.*) \|$", page, flags=re.MULTILINE)[1]


def test_every_field_of_both_documents_is_there(report_folder: Path) -> None:
    page = (report_folder / "disclosure.md").read_text(encoding="utf-8")
    assert tuple(dict.fromkeys(re.findall(r"^\| ([123]\.\d) ", page, flags=re.MULTILINE))) == EU
    assert re.findall(r"^\| \((\d+)\) ", page, flags=re.MULTILINE) == [str(n) for n in range(1, 13)]
    for only_the_owner_knows in ("1.1", "1.2", "2.1", "2.4", "(2)", "(8)", "(11)"):
        assert "**To be written**" in row(page, only_the_owner_knows)
    assert page.count("This page is not legal advice.") == 1
    assert "None" not in page
    assert "Larger images were scaled down to a short side of 1,500 pixels, and all were written as JPEGs" in page


def test_the_numbers_are_those_of_the_commits(small_dataset: Path, built_report: Path) -> None:
    page = (built_report / "disclosure.md").read_text(encoding="utf-8")
    commits = list(CommitLog(location_of(small_dataset)).read_all())
    images, masks = (sum(commit.counts[name] for commit in commits) for name in ("images", "masks"))
    assert row(page, "(3)") == f"{images} images with {masks:,} masks"
    assert row(page, "1.3 Modality") == f"Image, less than 1 million images ({images})"
    rejected = {name: number for commit in commits for name, number in commit.counts.items() if "rejected:" in name}
    assert rejected
    for reason, number in rejected.items():
        assert row(page, reason.removeprefix("rejected:").replace("_", "\\_")) == str(number)
    assert "forbids training were rejected: 0 rows" in page


def test_text_of_the_data_cannot_become_markup(report_folder: Path) -> None:
    page = (report_folder / "disclosure.md").read_text(encoding="utf-8")
    assert SCRIPT not in page
    assert "trained on &lt;script&gt;" in page
    assert "| Acme \\$tock\\$ pictures | 6 |" in page
    assert "DE 2, IN 1, KE 1, US 1; unknown for 1 image" in page
    assert "found 1 detection outside the redacted regions" in page
    assert "Whether opt-outs were respected: not recorded." in page


def test_who_asserted_licenses_and_terms_of_models_are_stated(reported_facts: tuple[Statistics, Facts]) -> None:
    statistics, facts = reported_facts
    asserted = (AssertedLicense("CC-BY-4.0", "zoe, 2026-11-02", 5),)
    audit = audit_of(licenses=Licenses(date(2026, 11, 20), (), (), 0, 0, 0, asserted))
    build = replace(facts.build, model=ModelTerms(license="MIT", terms="no <weapons>"), respects_opt_out=False)
    facts = replace(
        facts,
        build=build,
        licenses=(("CC0-1.0", 4), ("CC-BY-4.0", 2)),
        domains=(("example.org", 5),),
        domains_total=12,
    )
    page = disclosure_markdown(audit, replace(statistics, rejected_by_reason={"refused_by_list": 3}), facts)
    assert "| CC-BY-4.0 | zoe, 2026-11-02 | 5 |\n\nAll other licenses are those of the catalog." in page
    assert "License of the model: MIT; terms: no &lt;weapons&gt;." in page
    assert "4 images are marked as in the public domain" in page
    assert "regardless of opt-outs in their metadata" in page
    assert "3 rows were refused by lists." in page
    assert "| example.org | 5 |\n\nThese are the 1 most frequent of 12 domains." in page
    assert "Who asserted the licenses wasn't audited." in disclosure_markdown(audit_of(), statistics, facts)


def test_detections_that_do_not_count_are_named_beside_the_number_of_those_that_do(
    reported_facts: tuple[Statistics, Facts],
) -> None:
    statistics, facts = reported_facts
    mtcnn = DetectorCounts("face", "mtcnn", 0.7, 0, 0, 2)
    privacy = PrivacyResult(8, (mtcnn,), (), 0, 2, residual=1, unconfirmed=3, left_alone={SCRIPT: 1})
    audit, charts = audit_of(privacy=privacy), charts_of(statistics)
    left = (
        "1 detection caused by redaction and left, 3 detections unconfirmed by the build and 1 detection released by "
    )
    name = '&lt;script&gt;alert("x")&lt;/script&gt;.'
    page = disclosure_markdown(audit, statistics, facts)
    assert f"found 0 detections outside the redacted regions, not counting {left}{name}" in page
    card = card_markdown(audit, statistics, facts, charts)
    assert f"0 faces by mtcnn at score 0.7 or over, not counting {left}{name}" in card
    html = parse_page(render_page(audit, statistics, facts, charts, ReportImages())).text
    assert f"found 0 regions outside the redacted ones, not counting {left}" in html
    assert f"0 found by mtcnn in 8 images, not counting {left}" in html
    for each in privacy.not_counted:
        assert f"; {each} (--strict counts them)" in verdict(audit)


def test_licenses_are_said_to_be_asserted_and_not_verified(reported_facts: tuple[Statistics, Facts]) -> None:
    statistics, facts = reported_facts
    licenses = Licenses(date(2026, 11, 20), (), (), 0, 0, 0, (AssertedLicense("CC-BY-4.0", "zoe, 2026-11-02", 5),))
    charts = charts_of(statistics)
    said = "those of the catalog; segmint doesn't verify them. CC-BY-4.0 of 5 images was asserted by zoe, 2026-11-02."
    card = card_markdown(audit_of(licenses=licenses), statistics, facts, charts)
    description = json.loads(croissant_json(facts, "..", licenses))["description"]
    for text in (card, description):
        assert said in text
        assert "licensed photographs" not in text
    for text in (card_markdown(audit_of(), statistics, facts, charts), croissant_json(facts, "..").decode()):
        assert "Who asserted them wasn't audited." in text


def test_images_without_a_credit_are_counted_and_are_no_credit(reported_facts: tuple[Statistics, Facts]) -> None:
    statistics, facts = reported_facts
    charts = charts_of(statistics)
    whole = card_markdown(audit_of(), statistics, facts, charts)
    assert "most frequent" not in whole
    assert "neither an attribution nor a provider" not in whole
    facts = replace(facts, uncredited=4, credits_total=201)
    card = card_markdown(audit_of(), statistics, facts, charts)
    assert "most frequent of 201; the images tables list all of them." in card
    assert "4 images have neither an attribution nor a provider." in card


def test_corrections_are_not_ascribed_to_the_build(reported_facts: tuple[Statistics, Facts]) -> None:
    statistics, facts = reported_facts
    charts = charts_of(statistics)
    assert "All masks were generated automatically" in card_markdown(audit_of(), statistics, facts, charts)
    facts = replace(facts, build=replace(facts.build, adding=("segmenter lamps.Lamps",)))
    card = card_markdown(audit_of(), statistics, facts, charts)
    assert "Those without a `model` were made with Segment Anything: profile sa1b" in card

    facts = replace(
        facts,
        made_by_build=0,
        redacted=(*facts.redacted, RedactedRegions("face", "manual", 1, 1)),
        redactions=RedactionTotals(unconfirmed=2, left_alone=1),
        taken_down=1,
    )
    card = card_markdown(audit_of(), statistics, facts, charts)
    assert "Its masks were replaced later" in card
    assert "those of detectors before anything was written, those of `segmint redact` later." in card
    page = disclosure_markdown(audit_of(), statistics, facts)
    assert "The masks of the build were replaced later. Masks were added by the segmenter lamps.Lamps." in page
    visible = (
        "The build didn't redact 2 detections that a second look didn't confirm and 1 detection released by a person."
    )
    for text in (card, page):
        assert "Model: " not in text
        assert "were made with" not in text
        assert "| face | segmint redact | 1 | 1 |" in text
        assert visible in text
        assert "row was taken down" in text
    assert (
        json.loads(croissant_json(facts, ".."))["description"].count(". The segmenter lamps.Lamps added masks. ") == 1
    )
    assert json.loads(croissant_json(facts, ".."))["isBasedOn"] == []


def test_imported_masks_are_not_ascribed_to_the_model_of_the_build(reported_facts: tuple[Statistics, Facts]) -> None:
    statistics, facts = reported_facts
    assert facts.masks_of_build
    facts = replace(facts, made_by_build=0)
    assert "Its masks were replaced later" in card_markdown(audit_of(), statistics, facts, charts_of(statistics))
    assert "Segment Anything" not in json.loads(croissant_json(facts, ".."))["description"]


def test_photographs_outside_the_dataset_are_not_said_to_be_redacted(reported_facts: tuple[Statistics, Facts]) -> None:
    statistics, facts = reported_facts
    charts = charts_of(statistics)
    card = card_markdown(audit_of(), statistics, facts, charts)
    assert "All metadata of the photographs was removed." in card
    assert "The released images were not searched again." in card
    unsearched = replace(facts, redacted=(), detectors=(DetectorFact("faces", None), DetectorFact("plates", None)))
    assert "because nothing was searched for" in card_markdown(audit_of(), statistics, unsearched, charts)

    facts = replace(facts, build=replace(facts.build, format="annotations"))
    for text in (
        card_markdown(audit_of(), statistics, facts, charts),
        disclosure_markdown(audit_of(), statistics, facts),
    ):
        assert "they keep their faces, plates, and metadata" in text
        assert "the pictures that the masks were made on" in text
        assert "metadata of the photographs was removed" not in text
        assert "released images" not in text


def test_domains_are_those_of_web_pages() -> None:
    pages = (
        "https://a.org/x",
        "HTTP://me:secret@A.org:8/y",
        "s3://b/z",
        "no page",
        None,
        "",
        "https://c.de?q",
        "http://",
    )
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE images AS SELECT unnest($1::VARCHAR[]) AS source_url", [pages])
        assert connection.execute(DOMAINS).fetchall() == [("a.org", 2, 2), ("c.de", 1, 2)]


def test_other_data_has_no_disclosure(reported_facts: tuple[Statistics, Facts]) -> None:
    statistics, facts = reported_facts
    with pytest.raises(ValueError, match="has none"):
        disclosure_markdown(audit_of(), statistics, replace(facts, manifest=None))
