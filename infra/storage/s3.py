"""S3 and compatible stores, through s3fs: conditional puts, paged listings, older versions."""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.error_kinds import ErrorKind, meaning, service_code
from segmint.infra.storage.retry import RetryPolicy, with_retries
from segmint.infra.storage.stores import ObjectInfo, OnSkip, check_length, check_size, warn_of_skipped
from segmint.infra.uris import parent, split_bucket

OPTIONS: dict[str, str] = {
    "endpoint_url": "address of an S3-compatible server",
    "profile": "name of a profile in the AWS configuration files",
    "region": "name of a region",
    "anon": "true for public buckets, read without credentials",
    "requester_pays": "true for buckets where the reader pays",
    "addressing_style": "path, virtual or auto",
    "verify": "false, or the path of a certificate bundle",
    "connect_timeout": "seconds, 5",
    "read_timeout": "seconds without a byte, 60",
    "max_connections": "connections of one process, 64",
}

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 60
_SLOWEST = 100_000
"""Bytes a second: a slower body counts as stalled, even if bytes still arrive."""
_PING_S = 10.0

PART_BYTES = 64 << 20
"""Bytes of a part of a large file; one of more than 10,000 such parts, S3's limit, gets larger ones."""
_PARTS_AT_ONCE = 4
_MOST_PARTS = 10_000
_PART_POLICY = RetryPolicy()


def check_options(prefix: str, options: Mapping[str, Any]) -> None:
    """Raise `UsageError` for a key that is not in `OPTIONS`."""
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise UsageError(
            f"unknown storage option {', '.join(unknown)} of {prefix!r}: expected {', '.join(sorted(OPTIONS))}"
        )


def make_filesystem(options: Mapping[str, Any]) -> Any:
    """An s3fs file system for these options (keys of `OPTIONS`), private to its caller.

    No listings cache: commits of other processes must be visible. No retries below ours: botocore's and s3fs's
    would multiply with them. No redirects.
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
    """Objects in S3 buckets. Every exchange has a deadline: socket timeouts alone do not end a stalled put."""

    def __init__(self, filesystem: Any) -> None:
        self._fs = filesystem
        config = filesystem.config_kwargs
        self._exchange_s = float(config["connect_timeout"]) + float(config["read_timeout"])

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """The whole object in one request."""
        return self._get(uri, max_bytes)

    def read_range(self, uri: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop)."""
        data = self._get(uri, None, Range=f"bytes={start}-{stop - 1}")
        check_length(len(data), stop - start)
        return data

    def create(self, uri: str, data: bytes) -> None:
        """One put with `If-None-Match: *`, up to 5 GB; the loser gets `PreconditionFailed`."""
        bucket, key = _object(uri)
        self._call("put_object", size=len(data), Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")

    def create_file(self, uri: str, path: Path) -> None:
        """One put, or a multipart upload for a large file, that is completed with `If-None-Match: *`."""
        if path.stat().st_size <= PART_BYTES:
            self.create(uri, path.read_bytes())
        elif self._is_there(uri):  # before gigabytes are sent in vain
            raise FileExistsError(errno.EEXIST, "an object is already there", uri)
        else:
            self._put_parts(uri, path, IfNoneMatch="*")

    def put(self, uri: str, data: bytes) -> None:
        """One put; S3 shows an object only when it is complete."""
        bucket, key = _object(uri)
        self._call("put_object", size=len(data), Bucket=bucket, Key=key, Body=data)

    def put_file(self, uri: str, path: Path) -> None:
        """One put, or a multipart upload for a large file."""
        if path.stat().st_size <= PART_BYTES:
            self.put(uri, path.read_bytes())
        else:
            self._put_parts(uri, path)

    def _put_parts(self, uri: str, path: Path, **conditions: Any) -> None:
        """Upload a file in parts, each of which is retried separately; a failure leaves nothing behind.

        The upload is completed under `conditions`; with some, `FileExistsError` if it is gone by then: an earlier try
        may have completed it, or another writer's object ended it, which only the bytes can tell. Raises what
        `with_retries` raises for the part that failed, after the upload was aborted.
        """
        bucket, key = _object(uri)
        size = path.stat().st_size
        step = max(PART_BYTES, -(-size // _MOST_PARTS))
        # If this answer is lost, an upload without parts is left over, and its id is unknown.
        begun = self._call("create_multipart_upload", Bucket=bucket, Key=key)
        upload: dict[str, Any] = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}

        def put_part(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * step)
                data = file.read(step)
            send = partial(self._call, "upload_part", size=len(data), **upload, PartNumber=number, Body=data)
            answer = with_retries(_PART_POLICY, "put", uri, send)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        def complete() -> None:
            try:
                self._call("complete_multipart_upload", **upload, **conditions, MultipartUpload={"Parts": parts})
                return
            except OSError as error:
                if (service_code(error) or ("",))[0] != "NoSuchUpload":
                    raise
                # The upload is gone: an earlier try may have completed it, and its answer was lost.
                if not conditions and self.size(uri) != size:
                    raise
            if conditions:  # raised here, as the store's answer would be read for its cause
                raise FileExistsError(errno.EEXIST, "the upload is gone: an object may be there", key)

        try:
            pool = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="parts")
            try:
                parts = list(pool.map(put_part, range(1, -(-size // step) + 1)))
            finally:
                pool.shutdown(cancel_futures=True)  # and wait: a part that arrives after the abort would stay
            with_retries(_PART_POLICY, "put", uri, complete)
        except BaseException:
            with suppress(SegmintError):
                abort = partial(self._call, "abort_multipart_upload", **upload)
                with_retries(_PART_POLICY, "abort the upload of", uri, abort)
            raise

    def _is_there(self, uri: str) -> bool:
        try:
            self.size(uri)
        except OSError as error:
            if meaning(error) is ErrorKind.ABSENT:
                return False
            raise
        return True

    def walk(
        self, uri: str, recursive: bool, on_skip: OnSkip = warn_of_skipped, beginning: str = ""
    ) -> Iterator[ObjectInfo]:
        """Objects below a prefix, page by page, each page requested once."""
        bucket, key = split_bucket(uri)
        prefix = f"{key.rstrip('/')}/" if key.rstrip("/") else ""
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix + beginning}
        if not recursive:
            request["Delimiter"] = "/"
        yield from self._pages(request, len(prefix))

    def size(self, uri: str) -> int:
        """The size in bytes, by a HEAD request."""
        bucket, key = _object(uri)
        try:
            answer = self._call("head_object", Bucket=bucket, Key=key)
        except OSError as error:
            if meaning(error) is ErrorKind.ABSENT:
                self._require_bucket(bucket)
            elif (service_code(error) or ("",))[0] == "400":
                self._call(
                    "list_objects_v2", Bucket=bucket, MaxKeys=1
                )  # its answer has the reason, such as an expired token
            raise
        return int(answer["ContentLength"])

    def delete(self, uri: str) -> None:
        """Remove the object; on a versioned bucket older versions stay (see `purge`)."""
        bucket, key = _object(uri)
        self._call("delete_object", Bucket=bucket, Key=key)

    def purge(self, uri: str) -> None:
        """Remove the object, its older versions and its delete markers."""
        bucket, key = _object(uri)
        self.delete(uri)
        for entry in self._versions(bucket, key):
            if entry["Key"] == key and entry.get("VersionId"):
                self._call("delete_object", Bucket=bucket, Key=key, VersionId=entry["VersionId"])

    def versioned(self, uri: str) -> set[str]:
        """Names below a prefix for which the bucket has any version or delete marker."""
        bucket, key = split_bucket(uri)
        prefix = f"{key.rstrip('/')}/" if key.rstrip("/") else ""
        return {entry["Key"][len(prefix) :] for entry in self._versions(bucket, prefix)} - {""}

    def _versions(self, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        while True:
            page = self._call("list_object_versions", **request)
            yield from (*page.get("Versions", []), *page.get("DeleteMarkers", []))
            if not page.get("IsTruncated"):
                return
            request["KeyMarker"] = page.get("NextKeyMarker", "")
            request["VersionIdMarker"] = page.get("NextVersionIdMarker", "")

    def ping(self, uri: str) -> None:
        """List one entry of the prefix."""
        bucket, key = split_bucket(parent(uri))
        self._call("list_objects_v2", within_s=_PING_S, Bucket=bucket, Prefix=key, MaxKeys=1)

    def _pages(self, request: dict[str, Any], skip: int) -> Iterator[ObjectInfo]:
        while True:
            page = self._call("list_objects_v2", **request)
            for entry in page.get("Contents", []):
                name = entry["Key"][skip:]
                if name and not name.endswith("/"):  # some tools mark folders with empty objects
                    yield ObjectInfo(name, int(entry["Size"]), entry["LastModified"].astimezone(UTC))
            if not page.get("IsTruncated"):
                return
            request = request | {"ContinuationToken": page["NextContinuationToken"]}

    def _get(self, uri: str, max_bytes: int | None, **conditions: str) -> bytes:
        bucket, key = _object(uri)

        async def fetch() -> bytes:
            request = self._fs._call_s3("get_object", Bucket=bucket, Key=key, **conditions)
            answer = await _within(self._exchange_s, request)
            body = answer["Body"]
            try:
                announced = int(answer["ContentLength"])
                check_size(uri, announced, max_bytes)
                data: bytes = await _within(self._exchange_s + announced / _SLOWEST, body.read())
            finally:
                body.close()
            check_length(len(data), announced)
            return data

        return self._run(fetch)

    def _call(self, method: str, *, size: int = 0, within_s: float | None = None, **request: Any) -> Any:
        """One request; `size` is the length of its body in bytes."""
        limit = self._exchange_s + size / _SLOWEST if within_s is None else within_s
        return self._run(lambda: _within(limit, self._fs._call_s3(method, **request)))

    def _run(self, exchange: Callable[[], Coroutine[Any, Any, T]]) -> T:
        from fsspec.asyn import sync

        result: T = sync(self._fs.loop, exchange)
        return result

    def _require_bucket(self, bucket: str) -> None:
        # The answer to a HEAD has no body, so an absent key and an absent bucket look the same.
        try:
            self._call("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except OSError as error:
            # Without the right to list the bucket, the answer is only about the key.
            if meaning(error) is not ErrorKind.REFUSED or (service_code(error) or ("",))[0] == "NoSuchBucket":
                raise


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
            raise TimeoutError(f"no whole answer within {seconds:.3g} seconds") from error
        raise


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
            return _NoRedirectSession(await super()._get_session(proxy_url))

    return Session


class _NoRedirectSession:
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
