"""The session of botocore that S3's clients come from: its profile, and how it reads the times in listings."""

from datetime import datetime
from typing import Any


def make_session(profile: str | None) -> Any:
    """A session for aiobotocore with the named profile of the AWS configuration files, or the default one.

    botocore itself takes a tenth of a millisecond for each time, which is most of what a page of a listing costs.
    """
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    session = AioSession(profile=profile)
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_time)
    return session


def parse_time(text: Any) -> datetime:
    """A time as S3's listings have it, in ISO 8601 with its zone; any other is left to botocore's own parser.

    Raises `ValueError` for what is no time.
    """
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found
    except (TypeError, ValueError):
        pass
    from botocore.utils import parse_timestamp

    other: datetime = parse_timestamp(text)
    return other
