"""Faults that `make mutants` plants in the search of turned photographs, the last look, and the audit of its record."""

from tests.support.mutant import Mutant

_ORIENTATIONS = "operators/prepare/mosaic.py", "tests/operators/prepare/test_mosaic_orientations.py"
_LAST_LOOK = "tests/operators/prepare/test_released_search.py"
_RELEASED = "operators/prepare/released_search.py"
_LEFT_ALONE = "operators/prepare/deidentify.py", "tests/operators/prepare/test_deidentify_left_alone.py"
_AUDIT = "tests/operators/audit/test_privacy.py"


def _turned(name: str, old: str, new: str) -> Mutant:
    file, tests = _ORIENTATIONS
    return Mutant(name, file, old, new, tests)


def _looked(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, "operators/prepare/released_search.py", old, new, _LAST_LOOK)


REDACTION_MUTANTS = (
    Mutant(
        "a quarter turn is mapped back to the other side",
        "model/detectors/detection.py",
        "90: (width - y, x)",
        "90: (y, x)",
        _ORIENTATIONS[1],
    ),
    _turned("a face found upright and turned counts twice", "if is_as_good and iou", "if False and iou"),
    _turned(
        "a worse upright detection hides a turned face",
        "is_as_good = each.orientation",
        "is_as_good = True or each.orientation",
    ),
    _turned("turned faces count from any score", 'if detector.name.startswith("mtcnn")', "if False"),
    _turned("a hit does not lead to a search in full", "(*search_turned(detector, image, angle), *hits)", "hits"),
    Mutant(
        "a photograph that lies on a side is only searched as it is released",
        "operators/prepare/prepare.py",
        "likewise = find_likewise(image, detectors, to_redact, ",
        "likewise = find_likewise(image, detectors, [], ",
        _LAST_LOOK,
    ),
    _turned("turned images are searched in full at once", "max(image.shape[1] // 2, 1)", "max(image.shape[1], 1)"),
    _looked(
        "what redaction made is all redacted", "if may_remain and not _is_in_source", "if False and not _is_in_source"
    ),
    _looked("the source is not asked", "_is_in_source(each.found, source, size, detector)", "False"),
    _looked("the source is asked at the full score", "lenient(detector, SOURCE_SCORE)", "detector"),
    _looked("any detection in the window confirms", ">= SOURCE_IOU", ">= 0"),
    _looked("more than three remain", "len(residual) < MOST_RESIDUAL", "len(residual) < 9"),
    _looked(
        "a larger source is redacted at the released place",
        "each.found.mapped(across, down)",
        "each.found.mapped(1, 1)",
    ),
    Mutant(
        "an image is released after the third round",
        "operators/prepare/prepare.py",
        "                if not to_redact:\n",
        "                if not to_redact or _ == ROUNDS:\n",
        _LAST_LOOK,
    ),
    Mutant(
        "what a look finds is not redacted",
        "operators/prepare/prepare.py",
        "                found += to_redact\n",
        "                found += to_redact[:0]\n",
        _LAST_LOOK,
    ),
    Mutant(
        "a step has no more time than decoding",
        "operators/prepare/prepare.py",
        "_SEARCH_LIMITS = 3\n",
        "_SEARCH_LIMITS = 1\n",
        _LAST_LOOK,
    ),
    Mutant("a region is left alone at any place", _LEFT_ALONE[0], "SAME_IOU = 0.5", "SAME_IOU = 0.0", _LEFT_ALONE[1]),
    Mutant("any share may be redacted", "operators/prepare/prepare.py", "share > maximum", "share > 1", _LEFT_ALONE[1]),
    Mutant("small detections may remain", _RELEASED, "LEAST_RESIDUAL = 0.01", "LEAST_RESIDUAL = 0.0", _AUDIT),
    Mutant("a residual detection may be anywhere", _RELEASED, "each.touches(entry.box) and ", "", _AUDIT),
    Mutant("a listed region need not be visible", _RELEASED, " and each.is_visible(gray)", "", _AUDIT),
    Mutant("a recorded plate explains a face", _RELEASED, 'known["kind"] != self.kind or ', "", _AUDIT),
    Mutant(
        "a recorded detection explains those beside it",
        _RELEASED,
        "SAME_RESIDUAL_IOU = 0.5",
        "SAME_RESIDUAL_IOU = 0.3",
        _AUDIT,
    ),
    Mutant(
        "any number of recorded detections counts",
        "operators/audit/privacy.py",
        '"residual_detections")[:MOST_RESIDUAL]',
        '"residual_detections")',
        _AUDIT,
    ),
    Mutant(
        "a strict audit accepts what the build recorded",
        "pipeline/quality/audit/privacy.py",
        "        if self.strict:\n",
        "        if False:\n",
        "tests/pipeline/quality/audit/test_privacy.py",
    ),
    Mutant(
        "a lower score is not requested from the detector process",
        "operators/prepare/detector_process.py",
        "search = lenient(detector, request.score).detect",
        "search = lenient(detector, 1.0).detect",
        "tests/operators/prepare/test_detector_process.py",
    ),
    Mutant(
        "all candidates are confirmed",
        "model/detectors/second_look.py",
        "    return rule.is_met(view_scores(look, image, candidate, rule.views))\n",
        "    return rule.is_met([1.0] * len(rule.views))\n",
        "tests/model/detectors/test_second_look.py",
    ),
    Mutant(
        "large faces are confirmed like small ones",
        "model/detectors/second_look.py",
        "is_large = max(x1 - x0, y1 - y0) > LARGE_FACE * max(shape)",
        "is_large = False",
        "tests/model/detectors/test_second_look.py",
    ),
)
