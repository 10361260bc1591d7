"""Reasons for rejecting an image, and the exception that carries a verdict."""

import re
from collections.abc import Collection
from enum import StrEnum

from segmint.infra.errors import UsageError


class Reason(StrEnum):
    """Final verdict on one image. The dataset's `rejects` tables contain it."""

    LICENSE_NOT_ALLOWED = "license_not_allowed"
    LICENSE_MISSING = "license_missing"
    LICENSE_EXPIRED = "license_expired"
    NOT_REDISTRIBUTABLE = "not_redistributable"
    DUPLICATE_ID = "duplicate_id"
    URI_NOT_ALLOWED = "uri_not_allowed"
    NOT_FOUND = "not_found"
    UNREADABLE_OBJECT = "unreadable_object"
    EMPTY_OBJECT = "empty_object"
    HASH_MISMATCH = "hash_mismatch"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    ANIMATED = "animated"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    DETECTOR_FAILED = "detector_failed"
    STILL_DETECTED = "still_detected"
    MOSTLY_REDACTED = "mostly_redacted"
    TOO_MANY_MASKS = "too_many_masks"
    KILLED_WORKER = "killed_worker"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    PERSISTENT_FAULT = "persistent_fault"
    STAGE_FAILED = "stage_failed"
    TAKEN_DOWN = "taken_down"
    DUPLICATE_IMAGE = "duplicate_image"
    UNFIT = "unfit"
    OPTED_OUT = "opted_out"
    PROMPTS_MISFIT = "prompts_misfit"
    REFUSED_BY_LIST = "refused_by_list"


LICENSE_REASONS = frozenset(
    {
        Reason.LICENSE_NOT_ALLOWED,
        Reason.LICENSE_MISSING,
        Reason.LICENSE_EXPIRED,
        Reason.NOT_REDISTRIBUTABLE,
    }
)

CURATE_REASONS = frozenset({Reason.DUPLICATE_IMAGE, Reason.UNFIT, Reason.OPTED_OUT})
"""Reasons that a catalog may give in `refused_reason`."""

_BUILT_IN = frozenset(map(str, Reason))
_CUSTOM = re.compile(r"[a-z][a-z0-9_]{0,62}")

DELIBERATE_REASONS = LICENSE_REASONS | CURATE_REASONS | {Reason.TAKEN_DOWN, Reason.REFUSED_BY_LIST}
"""Reasons that result from a person's decision. Even a large number of them doesn't indicate an outage."""


class RejectedError(Exception):
    """A verdict that rejects one image. The image becomes a rejected row with this reason, and the build continues.

    `detail` is a sentence about what was found and what was expected. The dataset stores the sentence, so it must not
    contain image data.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["RejectedError"], tuple[Reason, str]]:
        """Make the verdict picklable, so that one process can send it to another."""
        return type(self), (self.reason, self.detail)


def is_custom_reason(name: str) -> bool:
    """Return whether a custom stage may reject an image for this reason."""
    return bool(_CUSTOM.fullmatch(name)) and name not in _BUILT_IN


def check_reasons(names: Collection[str], custom: bool) -> None:
    """Raise `UsageError` for a reason that `--retry-rejected` doesn't accept.

    With `custom`, the reasons of custom stages are accepted, too.
    """
    known = [reason.value for reason in Reason if reason is not Reason.TAKEN_DOWN]
    for name in names:
        if name not in known and not (custom and is_custom_reason(name)):
            more = ", or a reason of a custom stage" if custom else ""
            raise UsageError(f"--retry-rejected {name!r}: expected one of {', '.join(known)}{more}")
