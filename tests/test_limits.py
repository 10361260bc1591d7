"""The limits that the pages on guarantees, privacy, and security state are those of the code."""

from pathlib import Path

from segmint.catalogs import layout
from segmint.catalogs.dataset.submissions import MOST_BYTES
from segmint.catalogs.dataset.sweep import GRACE
from segmint.catalogs.source import readers, scan
from segmint.infra import tars
from segmint.infra.storage import errors, retry, s3
from segmint.model.detectors import cascade, plates
from segmint.operators import images, opt_out
from segmint.operators.prepare import (
    deidentify,
    detector_process,
    mosaic,
    prepare,
    read_image,
    released_search,
)
from segmint.operators.shards import revise, write
from segmint.pipeline import build
from segmint.pipeline.building.execution import quarantine
from segmint.pipeline.building.execution import quarantine as trials
from segmint.pipeline.config.config import Config, ResourcesConfig
from segmint.pipeline.engine.annotate import requests

ROOT = Path(__file__).resolve().parents[1]


def words_of(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def test_limits_on_the_page_are_the_codes() -> None:
    page = words_of("docs/guarantees.md")
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


def test_limits_of_security_are_the_codes() -> None:
    page = words_of("SECURITY.md")
    mebibyte, gibibyte = 1 << 20, 1 << 30
    memory = prepare.PrepareResources().memory_limit or 0
    expected = [
        f"Scans limit headers to {tars.MOST_HEADER_BYTES // mebibyte} MiB and sidecars to "
        f"{scan.JSON_BYTES // mebibyte} MiB",
        f"at most {memory // gibibyte} GiB of memory per image",
        f"at most {opt_out.DEEPEST} levels of nesting and {opt_out.MOST_XMP // mebibyte} MiB per image",
        f"limits of {layout.MOST_PIXELS // 10**6} million pixels, {images.MEMORY // gibibyte} GiB of memory "
        f"(on Linux), and {images.TIMEOUT_S:g} s",
        f"up to {images.PIXELS_HERE // 10**6} million pixels",
        f"declares more than {layout.MOST_PIXELS // 10**6} million pixels",
        f"in blocks of {readers.BLOCK_BYTES // mebibyte} MiB, and a row can be at most "
        f"{readers.ROW_BYTES // mebibyte} MiB",
        f"members over {layout.MOST_MEMBER_BYTES // mebibyte} MiB, and tar headers over "
        f"{tars.MOST_HEADER_BYTES // mebibyte} MiB",
        f"A request body can be at most {MOST_BYTES // mebibyte} MiB",
        f"at most two bodies over {requests.LARGE // mebibyte} MiB",
    ]
    assert [text for text in expected if text not in page] == []


def test_limits_of_privacy_are_the_codes() -> None:
    page = words_of("docs/privacy.md")
    small, large = plates.SMALL, plates.LARGE
    *sizes, last = (f"{scale:g}" for scale in large[0])
    *closer, most = (f"{scale:g}" for scale in large[1])
    expected = [
        f"for faces of at least {cascade.SMALLEST} pixels. | The image at {', '.join(sizes)}, and {last} times its "
        f"size, and images of up to 1 megapixel also at {small[0][-1]:g} times",
        f"for faces of at least {2 * cascade.SMALLEST} pixels",
        f"with a score of at least {plates.GLANCE:g}: by {small[1][0]:g} and {small[1][1]:g} times in these images, "
        f"and by {', '.join(closer)}, and {most} times in larger ones",
        f"minimum score | {deidentify.MTCNN_SCORE:g}, or {mosaic.TURNED_SCORE:g} if rotated | {deidentify.CLP_SCORE:g}",
        f"redact after {released_search.ROUNDS} rounds",
        f"up to {released_search.MOST_RESIDUAL} per image",
        f"an IoU of at least {released_search.SAME_RESIDUAL_IOU:g}",
        f"at most {mosaic.CELLS} \N{MULTIPLICATION SIGN} {mosaic.CELLS} cells",
        f"an ellipse {mosaic.FACE_EXPANSION:g} times the size of the box",
    ]
    assert [text for text in expected if text not in page] == []
