"""S3 and S3-compatible stores, through s3fs: conditional puts, paginated listings, older versions."""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from segmint.infra.errors import SegmintError
from segmint.infra.storage.errors import (
    PASSING,
    ErrorKind,
    ObjectTooLargeError,
    ShortBodyError,
    StorageFaultError,
    meaning,
    service_code,
)
from segmint.infra.storage.retry import RetryPolicy, with_retries
from segmint.infra.storage.stores import (
    ObjectInfo,
    ObjectVersion,
    OnSkip,
    check_length,
    check_size,
    endless_error,
    warn_of_skipped,
)
from segmint.infra.uris import parent, redact, split_bucket

OPTIONS: dict[str, str] = {
    "endpoint_url": "address of an S3-compatible server",
    "profile": "name of a profile in the AWS configuration files",
    "region": "name of a region",
    "anon": "true to read public buckets without credentials",
    "requester_pays": "true for requester-pays buckets",
    "addressing_style": "path, virtual, or auto",
    "verify": "false, or the path of a certificate bundle",
    "connect_timeout": "time limit in seconds, 5 by default",
    "read_timeout": "time limit in seconds without receiving data, 60 by default",
    "max_connections": "maximum number of connections per process, 64 by default",
}

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 60
SLOWEST = 100_000
"""Minimum throughput of a body in bytes per second. A slower transfer counts as stalled, even if bytes still arrive."""
_PING_S = 10.0
_PIECE = 1 << 20  # bytes of a body

PART_BYTES = 64 << 20
"""Size in bytes of the parts of a large file. If the file would need more than S3's maximum of 10,000 parts, the parts
are larger."""
_PARTS_AT_ONCE = 4
_MOST_PARTS = 10_000
PART_POLICY = RetryPolicy()
MOST_IDLE_PAGES = 100
_ENTRIES = ("Contents", "CommonPrefixes", "Versions", "DeleteMarkers")  # of a page of a listing


def make_filesystem(options: Mapping[str, Any]) -> Any:
    """Create an s3fs file system with these options (keys of `OPTIONS`). Other callers don't share it.

    The listings cache is off, because commits by other processes must be visible. botocore and s3fs don't retry,
    because their retries would multiply with ours. Redirects aren't followed.
    """
    import s3fs

    config: dict[str, Any] = {
        "connect_timeout": options.get("connect_timeout", _CONNECT_TIMEOUT_S),
        "read_timeout": options.get("read_timeout", _READ_TIMEOUT_S),
        "max_pool_connections": options.get("max_connections", 64),
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "http_session_cls": http_without_redirects(),
    }
    if "addressing_style" in options:
        config["s3"] = {"addressing_style": options["addressing_style"]}
    client = {
        name: options[key] for key, name in {"region": "region_name", "verify": "verify"}.items() if key in options
    }
    filesystem = s3fs.S3FileSystem(
        anon=bool(options.get("anon", False)),
        endpoint_url=options.get("endpoint_url"),
        requester_pays=bool(options.get("requester_pays", False)),
        client_kwargs=client,
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
        session=make_session(options.get("profile") or None),
    )
    filesystem.retries = 1
    return filesystem


class S3Store:
    """Objects in S3 buckets. Every request has a deadline, because socket timeouts don't stop a stalled put."""

    def __init__(self, filesystem: Any) -> None:
        self._fs = filesystem
        config = filesystem.config_kwargs
        self._exchange_s = float(config["connect_timeout"]) + float(config["read_timeout"])

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """Read the whole object in one request."""
        return self._get(uri, max_bytes)[0]

    def read_range(self, uri: str, start: int, stop: int, first: ObjectVersion) -> tuple[bytes, ObjectVersion]:
        """Read the bytes [start, stop) with `If-Match`."""
        conditions = {"Range": f"bytes={start}-{stop - 1}"}
        if first.etag and not first.etag.startswith("W/"):  # a weak ETag never matches
            conditions["IfMatch"] = first.etag
        return self._get(uri, None, **conditions)

    def create(self, uri: str, data: bytes) -> None:
        """Create an object of up to 5 GB with a conditional put (`If-None-Match: *`).

        If another writer was faster, S3 responds with `PreconditionFailed`.
        """
        self._put(uri, data, IfNoneMatch="*")

    def create_file(self, uri: str, path: Path) -> None:
        """Create an object with `If-None-Match: *`, in one put or, for a large file, in a multipart upload."""
        if path.stat().st_size <= PART_BYTES:
            self.create(uri, path.read_bytes())
        elif self._is_there(uri):  # don't upload gigabytes for nothing
            raise FileExistsError(errno.EEXIST, "an object is already there", uri)
        else:
            self._put_parts(uri, path, IfNoneMatch="*")

    def put(self, uri: str, data: bytes) -> None:
        """Write an object in one put. The object becomes visible only when it's complete."""
        self._put(uri, data)

    def put_file(self, uri: str, path: Path) -> None:
        """Write an object from a file, in one put or, for a large file, in a multipart upload."""
        if path.stat().st_size <= PART_BYTES:
            self.put(uri, path.read_bytes())
        else:
            self._put_parts(uri, path)

    def _put(self, uri: str, data: bytes, **conditions: Any) -> None:
        bucket, key = _object(uri)
        self._call("put_object", size=len(data), Bucket=bucket, Key=key, Body=data, **conditions)

    def _put_parts(self, uri: str, path: Path, **conditions: Any) -> None:
        """Upload a file in parts, retry each part separately, and complete the upload under `conditions`.

        If a part fails for good, this method aborts the upload and raises the error from `with_retries`. If there are
        conditions and the upload no longer exists, it raises `FileExistsError`. In that case, either an earlier attempt
        completed the upload, or an object of another writer ended it. Only a comparison of the bytes can tell which.
        """
        bucket, key = _object(uri)
        size = path.stat().st_size
        step = max(PART_BYTES, -(-size // _MOST_PARTS))
        # If this response is lost, an empty upload with an unknown ID remains in the bucket.
        begun = self._call("create_multipart_upload", Bucket=bucket, Key=key)
        upload: dict[str, Any] = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}

        def put_part(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * step)
                data = file.read(step)
            send = partial(self._call, "upload_part", size=len(data), **upload, PartNumber=number, Body=data)
            answer = with_retries(PART_POLICY, "put", uri, send)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        def complete() -> None:
            try:
                self._call("complete_multipart_upload", **upload, **conditions, MultipartUpload={"Parts": parts})
                return
            except OSError as error:
                if service_code(error)[0] != "NoSuchUpload":
                    raise
                # An earlier attempt may have completed the upload, but its response was lost.
                if not conditions and self.version(uri).size != size:
                    raise
            if conditions:  # outside the `except`, so that the S3 error doesn't appear as the cause
                raise FileExistsError(errno.EEXIST, "the upload is gone: an object may be there", key)

        try:
            pool = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="parts")
            try:
                parts = list(pool.map(put_part, range(1, -(-size // step) + 1)))
            finally:
                pool.shutdown(cancel_futures=True)  # wait, because a part that arrives after the abort would stay
            with_retries(PART_POLICY, "put", uri, complete)
        except BaseException:
            with suppress(SegmintError):
                abort = partial(self._call, "abort_multipart_upload", **upload)
                with_retries(PART_POLICY, "abort the upload of", uri, abort)
            raise

    def _is_there(self, uri: str) -> bool:
        try:
            self.version(uri)
        except OSError as error:
            if meaning(error) is ErrorKind.ABSENT:
                return False
            raise
        return True

    def walk(
        self, uri: str, recursive: bool, on_skip: OnSkip = warn_of_skipped, beginning: str = ""
    ) -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix, one page at a time. Each page is requested only once."""
        bucket, prefix = _folder(uri)
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix + beginning}
        if not recursive:
            request["Delimiter"] = "/"
        for page in self.pages("list_objects_v2", request, {"ContinuationToken": "NextContinuationToken"}):
            for entry in page.get("Contents", []):
                name = _below(prefix, entry["Key"])
                if name and (entry["Size"] or not name.endswith("/")):  # some tools create empty objects as folders
                    yield ObjectInfo(name, int(entry["Size"]), entry["LastModified"].astimezone(UTC))

    def version(self, uri: str) -> ObjectVersion:
        """Return the object's size in bytes, ETag, and time of modification from a HEAD request."""
        bucket, key = _object(uri)
        try:
            answer = self._call("head_object", Bucket=bucket, Key=key)
        except OSError as error:
            kind = meaning(error)
            if kind is ErrorKind.ABSENT:
                self._require_bucket(uri)
            elif kind not in PASSING:
                with suppress(ObjectTooLargeError):
                    self._get(uri, 0)  # unlike a HEAD, a GET returns the reason, such as an expired token
            raise
        return ObjectVersion(answer.get("ContentLength"), answer.get("ETag"), answer.get("LastModified"))

    def delete(self, uri: str, **version: Any) -> None:
        """Delete the object. A versioned bucket keeps the older versions; `purge` deletes those as well."""
        bucket, key = _object(uri)
        try:
            self._call("delete_object", Bucket=bucket, Key=key, **version)
        except OSError as error:
            if meaning(error) is not ErrorKind.ABSENT:  # some stores report that there is no such object
                raise

    def purge(self, uri: str) -> None:
        """Delete the object, its older versions, and its delete markers."""
        bucket, key = _object(uri)
        self.delete(uri)
        for entry in self._versions(bucket, key):
            if entry["Key"] == key and entry.get("VersionId"):
                self.delete(uri, VersionId=entry["VersionId"])

    def versioned(self, uri: str, beginning: str = "") -> set[str]:
        """Return the names below a prefix for which the bucket has an older version or a delete marker."""
        bucket, prefix = _folder(uri)
        found = self._versions(bucket, prefix + beginning)
        entries = (each for each in found if not each.get("IsLatest") or "Size" not in each)
        return {_below(prefix, entry["Key"]) for entry in entries} - {""}  # delete markers have no size

    def _versions(self, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
        markers = {"KeyMarker": "NextKeyMarker", "VersionIdMarker": "NextVersionIdMarker"}
        for page in self.pages("list_object_versions", {"Bucket": bucket, "Prefix": prefix}, markers):
            yield from (*page.get("Versions", []), *page.get("DeleteMarkers", []))

    def ping(self, uri: str) -> None:
        """List one entry of the parent prefix."""
        bucket, key = split_bucket(parent(uri))
        self._call("list_objects_v2", within_s=_PING_S, Bucket=bucket, Prefix=key, MaxKeys=1)

    def pages(self, method: str, request: Mapping[str, Any], markers: Mapping[str, str]) -> Iterator[Any]:
        """Yield all pages of a listing. `markers` maps parameters of a request to the keys of a page with their values.

        Raises `StorageFaultError` if the pages don't advance, because the listing would never end: if a page has the
        same markers as an earlier page, or if `MOST_IDLE_PAGES` pages in a row are empty or begin like an earlier one.
        """
        seen = {str({})}
        idle = 0
        following: dict[str, str] = {}
        while True:
            page = self._listed(method, {**request, **following})
            yield page
            if not page.get("IsTruncated"):
                return
            following = {name: page[key] for name, key in markers.items() if page.get(key)}
            beginning = str([page.get(kind, [])[:1] for kind in _ENTRIES])
            idle = idle + 1 if beginning in seen else 0
            if str(following) in seen or idle == MOST_IDLE_PAGES:
                raise endless_error(f"s3://{request['Bucket']}/{request['Prefix']}")
            seen.update((str(following), beginning))

    def _listed(self, method: str, request: Mapping[str, Any]) -> Any:
        """Request a page of a listing.

        Raises `ShortBodyError` if the body is empty, because that would look like an empty folder. If a shard's commits
        were missing, a correction would delete the shard's files.
        """
        page = self._call(method, **request)
        if "IsTruncated" not in page:
            raise ShortBodyError(errno.EIO, "received a page of a listing that doesn't say whether more pages follow")
        return page

    def _get(self, uri: str, max_bytes: int | None, **conditions: str) -> tuple[bytes, ObjectVersion]:
        bucket, key = _object(uri)

        async def fetch() -> tuple[bytes, ObjectVersion]:
            request = self._fs._call_s3("get_object", Bucket=bucket, Key=key, **conditions)
            answer = await _within(self._exchange_s, request)
            body, announced = answer["Body"], answer.get("ContentLength")
            try:
                check_size(uri, announced or 0, max_bytes)
                data = await self._read_body(uri, body, max_bytes)
            finally:
                body.close()
            if announced is not None:
                check_length(len(data), announced)
            place, _, total = str(answer.get("ContentRange", "")).rpartition("/")  # "bytes 0-9/100"
            if place and not conditions.get("Range", "bytes=0-").startswith(f"bytes={place[6:].partition('-')[0]}-"):
                raise ShortBodyError(errno.EIO, f"received {place}, but requested other bytes")
            size = int(total) if total.isdigit() else None
            return data, ObjectVersion(size, answer.get("ETag"), answer.get("LastModified"))

        try:
            return self._run(fetch)
        except OSError as error:
            if service_code(error)[0] == "404":  # S3 would give a code, so this may be from a proxy
                self._require_bucket(uri)
            raise

    async def _read_body(self, uri: str, body: Any, max_bytes: int | None) -> bytes:
        """Read a body, whose length the store needn't have announced."""
        data = bytearray()
        end = time.monotonic() + self._exchange_s
        while piece := await _within(end + len(data) / SLOWEST - time.monotonic(), body.read(_PIECE)):
            data += piece
            check_size(uri, len(data), max_bytes)
        return bytes(data)

    def _call(self, method: str, *, size: int = 0, within_s: float | None = None, **request: Any) -> Any:
        """Make one request. `size` is the number of bytes in the request's body."""
        limit = self._exchange_s + size / SLOWEST if within_s is None else within_s
        return self._run(lambda: _within(limit, self._fs._call_s3(method, **request)))

    def _run(self, exchange: Callable[[], Coroutine[Any, Any, T]]) -> T:
        from fsspec.asyn import sync

        result: T = sync(self._fs.loop, exchange)
        return result

    def _require_bucket(self, uri: str) -> None:
        """Raise an error if the bucket of a missing object is missing, too, or if the URI names a folder.

        A response to a HEAD has no body, so a missing object and a missing bucket look the same.
        """
        bucket, prefix = _folder(uri)
        try:
            page = self._call("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except OSError as error:
            code, _ = service_code(error)
            if code == "404":
                raise StorageFaultError(
                    f"cannot look at {redact(uri)}: the endpoint responds with 404 to a listing of the bucket, unlike "
                    "S3. Check the endpoint and the proxies in front of it"
                ) from error
            # If we aren't allowed to list the bucket, the error says nothing about the bucket.
            if meaning(error) is not ErrorKind.REFUSED or code == "NoSuchBucket":
                raise
            return
        if page.get("Contents"):
            raise IsADirectoryError(errno.EISDIR, "is a folder", uri)


def _folder(uri: str) -> tuple[str, str]:
    """Return the bucket of a folder, and the prefix of the keys in it."""
    bucket, key = split_bucket(uri)
    name = key.rstrip("/")
    return bucket, name and f"{name}/"


def _below(prefix: str, key: str) -> str:
    if not key.startswith(prefix):
        raise StorageFaultError(
            f"the store ignored the prefix {redact(prefix)} of a listing and sent {redact(key)}. Check the endpoint "
            "and the proxies in front of it"
        )
    return key[len(prefix) :]


def _object(uri: str) -> tuple[str, str]:
    bucket, key = split_bucket(uri)
    if not key:
        raise FileNotFoundError(errno.ENOENT, "names a bucket, not an object", uri)
    return bucket, key


async def _within(seconds: float, exchange: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(seconds) as limit:
            return await exchange
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(f"no complete response within {seconds:.3g} seconds") from error
        raise


def make_session(profile: str | None) -> Any:
    """Create an aiobotocore session for a profile of the AWS configuration files, or for the default profile.

    A page of a listing contains up to 1,000 objects. botocore's parser takes 0.1 ms per timestamp and also parses
    unused fields. This session's parser reads only the name, size, and time of each object.
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
    _require_few_checksums(session)
    return session


def _require_few_checksums(session: Any) -> None:
    """Send and check only the checksums that S3 requires, unless the environment or the AWS configuration asks for all.

    botocore adds checksums to every request by default, and many S3-compatible stores refuse such requests.
    """
    from botocore.configprovider import ConstantProvider

    settings = session.get_component("config_store")
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        settings.get_config_provider(name).set_default_provider(ConstantProvider("when_required"))


def http_without_redirects() -> type:
    """Return a subclass of aiobotocore's HTTP session that doesn't follow redirects.

    With a redirect, a server could send a signed request to any address, including one inside the network. botocore
    doesn't follow redirects either. If S3 responds that a bucket is in another region, botocore sends a new request to
    that region's endpoint.
    """
    from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]

    class Session(AIOHTTPSession):  # type: ignore[misc]
        async def _get_session(self, proxy_url: Any) -> Any:
            return _NoRedirectSession(await super()._get_session(proxy_url))

    return Session


class _NoRedirectSession:
    """Wrapper around an aiohttp session that never follows redirects. It has only the methods that aiobotocore uses."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **options: Any) -> Any:
        return await self._session.request(method, allow_redirects=False, **options)


def parse_time(text: Any) -> datetime:
    """Parse a timestamp from an S3 listing, which is usually in ISO 8601 format with a time zone.

    For other formats, this falls back to botocore's parser. Raises `ValueError` if the text isn't a time.
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
