"""The botocore session of S3 clients: its profile, HTTP without redirects, a faster parser for listings."""

from datetime import datetime
from typing import Any


def make_session(profile: str | None) -> Any:
    """A session for aiobotocore with the named profile of the AWS configuration files, or the default one.

    A page of a listing has a thousand objects. botocore's parser takes a tenth of a millisecond for each time in it,
    and most of the rest for what is not used: of an object only its name, size and time are read here.
    """
    from aiobotocore.parsers import AioResponseParserFactory, AioRestXMLParser  # type: ignore[import-untyped]
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    class Parser(AioRestXMLParser):  # type: ignore[misc]
        def _handle_structure(self, shape: Any, node: Any) -> Any:
            if shape.name == "Object":
                texts = {child.tag.rpartition("}")[2]: child.text or "" for child in node}
                if texts.keys() >= {"Key", "Size", "LastModified"}:
                    modified = parse_time(texts["LastModified"])
                    return {"Key": texts["Key"], "Size": int(texts["Size"]), "LastModified": modified}
            return super()._handle_structure(shape, node)

    class Parsers(AioResponseParserFactory):  # type: ignore[misc]
        def create_parser(self, protocol_name: str) -> Any:
            return Parser(**self._defaults) if protocol_name == "rest-xml" else super().create_parser(protocol_name)

    session = AioSession(profile=profile)
    parsers = Parsers()
    parsers.set_parser_defaults(timestamp_parser=parse_time)
    session.register_component("response_parser_factory", parsers)
    return session


def http_without_redirects() -> type:
    """The class of aiobotocore's HTTP sessions, with redirects answered to it instead of being followed.

    A redirect would lead a signed request to any address that a server names, inside the network too. botocore does not
    follow them either: it asks the right region's endpoint where S3 names another region.
    """
    from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]

    class Session(AIOHTTPSession):  # type: ignore[misc]
        async def _get_session(self, proxy_url: Any) -> Any:
            return _Unredirected(await super()._get_session(proxy_url))

    return Session


class _Unredirected:
    """An aiohttp session, as far as aiobotocore uses it, whose requests follow no redirect."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **options: Any) -> Any:
        return await self._session.request(method, allow_redirects=False, **options)


def parse_time(text: Any) -> datetime:
    """Parse a time of S3's listings, in ISO 8601 with its zone; other formats are left to botocore's parser.

    Raises `ValueError` for text that is not a time.
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
