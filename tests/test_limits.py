"""The limits that the page on guarantees states are those of the code."""

from pathlib import Path

from segmint.catalogs.dataset.sweep import GRACE
from segmint.infra.storage import errors, retry, s3
from segmint.operators.prepare import detector_process, prepare, read_image, released_search
from segmint.operators.shards import revise, write
from segmint.pipeline import build
from segmint.pipeline.building.execution import quarantine
from segmint.pipeline.building.execution import quarantine as trials
from segmint.pipeline.config.config import Config, ResourcesConfig

ROOT = Path(__file__).resolve().parents[1]


def test_limits_on_the_page_are_the_codes() -> None:
    page = " ".join((ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").split())
    policy, resources = retry.RetryPolicy(), ResourcesConfig()
    defaults = {name: field.default for name, field in Config.model_fields.items()}
    minutes = detector_process.DEATHS_WITHIN_S / 60
    expected = [
        f"redacted it {released_search.ROUNDS} more times.",
        f"In a shard of at least {write.MIN_ROWS_FOR_RATIO} rows",
        f"`max_reject_ratio` (default {defaults['max_reject_ratio']})",
        f"A window includes at most {quarantine.MOST_SINGLE_TRIALS} of these trials.",
        f"If a shard contains more than {write.MOST_FAULTED} such rows",
        f"processes up to {quarantine.MOST_WITNESSES} nearby rows",
        f"a search takes more than {detector_process.SEARCH_S:g} s",
        f"If {prepare.SEARCH_TRIES} attempts fail for an image",
        f"dies {detector_process.MOST_DEATHS + 1} times within {minutes:g} minutes",
        f"doesn't start within {detector_process.START_S:g} s",
        f"Makes up to {policy.attempts} attempts.",
        f"doubles from {policy.first_wait_s:g} s to at most {policy.max_wait_s:g} s.",
        f"`outage_timeout_s` (default {defaults['outage_timeout_s']:g} s)",
        f"up to {errors.BUSY_ROUNDS} rounds of attempts",
        f"Makes {retry.REFUSED_ATTEMPTS} attempts and then reports a fault",
        f"up to {read_image.MOST_READS} times in all",
        f"files over {s3.PART_BYTES >> 20} MiB",
        f"`resources.segment.timeout_s` (default {resources.segment.timeout_s:g} s)",
        f"responds to a probe within {trials.PROBE_S:g} s",
        f"up to {revise.ATTEMPTS} times",
        f"less than {GRACE.total_seconds() / 3600:g} h old",
    ]
    assert [text for text in expected if text not in page] == []
    words = {2: "two", 3: "three"}
    assert f"in {words[quarantine.FAULTY_ATTEMPTS]} attempts of a run" in page
    assert f"After {words[build.MOST_STALLED_WINDOWS]} such windows" in page
    assert f"{words[trials.DEATHS].capitalize()} workers die" in page
    assert errors.ROUNDS == 2, "a second round of attempts"
