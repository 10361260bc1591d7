"""Why an image was refused: the one list of verdicts, and the exception that carries one."""

from enum import StrEnum


class Reason(StrEnum):
    """A permanent verdict about one image, as written to the dataset's `rejects` tables."""

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
    KILLED_WORKER = "killed_worker"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"


LICENSE_REASONS = frozenset(
    {
        Reason.LICENSE_NOT_ALLOWED,
        Reason.LICENSE_MISSING,
        Reason.LICENSE_EXPIRED,
        Reason.NOT_REDISTRIBUTABLE,
    }
)


class RejectedError(Exception):
    """A verdict about one image: it becomes a rejected row with this reason, and the run goes on.

    `detail` says in one sentence what was found and what was expected; it holds no image data.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["RejectedError"], tuple[Reason, str]]:
        """Lets the verdict cross a process border."""
        return type(self), (self.reason, self.detail)
