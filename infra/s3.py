"""S3 and what speaks its protocol, through s3fs: conditional puts, paged listings, older versions."""

import errno
from collections.abc import Iterator, Mapping
from datetime import UTC
from pathlib import Path
from typing import Any

from infra.errors import UsageError
from infra.retry import Meaning, meaning, service_code
from infra.stores import ObjectInfo, check_length, check_size
from infra.uris import parent, split_bucket

OPTIONS: dict[str, str] = {
    "endpoint_url": "address of a server that speaks S3",
    "profile": "name of a profile in the AWS configuration files",
    "region": "name of a region",
    "anon": "true for public buckets, read without credentials",
    "requester_pays": "true where the reader pays",
    "addressing_style": "path, virtual or auto",
    "verify": "false, or the path of a certificate bundle",
    "connect_timeout": "seconds, 5",
    "read_timeout": "seconds without a byte, 60",
    "max_connections": "connections of a process, 64",
}


def check_options(prefix: str, options: Mapping[str, Any]) -> None:
    """Raises `UsageError` for a key that is not in `OPTIONS`."""
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise UsageError(
            f"unknown storage option {', '.join(unknown)} of {prefix!r}: expected {', '.join(sorted(OPTIONS))}"
        )


def make_filesystem(options: Mapping[str, Any]) -> Any:
    """An s3fs file system for these options (keys of `OPTIONS`), private to its caller.

    No listings cache: a commit written elsewhere must be seen. No retries below ours: botocore's and s3fs's
    would multiply with them.
    """
    import s3fs

    config: dict[str, Any] = {
        "connect_timeout": options.get("connect_timeout", 5),
        "read_timeout": options.get("read_timeout", 60),
        "max_pool_connections": options.get("max_connections", 64),
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    if "addressing_style" in options:
        config["s3"] = {"addressing_style": options["addressing_style"]}
    client = {
        name: options[key] for key, name in {"region": "region_name", "verify": "verify"}.items() if key in options
    }
    session = {"profile": options["profile"]} if options.get("profile") else {}
    filesystem = s3fs.S3FileSystem(
        anon=bool(options.get("anon", False)),
        endpoint_url=options.get("endpoint_url"),
        requester_pays=bool(options.get("requester_pays", False)),
        client_kwargs=client,
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
        **session,
    )
    filesystem.retries = 1
    return filesystem


class S3Store:
    """Objects in S3 buckets."""

    def __init__(self, filesystem: Any) -> None:
        self._fs = filesystem

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
        self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")

    def put(self, uri: str, data: bytes) -> None:
        """One put; S3 shows an object only when it is whole."""
        bucket, key = _object(uri)
        self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data)

    def put_file(self, uri: str, path: Path) -> None:
        """One put, or a multipart upload for a large file."""
        bucket, key = _object(uri)
        self._fs.put_file(str(path), f"{bucket}/{key}")

    def walk(self, uri: str, recursive: bool) -> Iterator[ObjectInfo]:
        """Objects below a prefix, page by page, each page asked for once."""
        bucket, key = split_bucket(uri)
        prefix = f"{key.rstrip('/')}/" if key.rstrip("/") else ""
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        if not recursive:
            request["Delimiter"] = "/"
        yield from self._pages(request, len(prefix))

    def size(self, uri: str) -> int:
        """The size in bytes, by a HEAD request."""
        bucket, key = _object(uri)
        try:
            answer = self._fs.call_s3("head_object", Bucket=bucket, Key=key)
        except OSError as error:
            if meaning(error) is Meaning.ABSENT:
                self._require_bucket(bucket)
            raise
        return int(answer["ContentLength"])

    def delete(self, uri: str) -> None:
        """Removes the object; on a versioned bucket older versions stay (see `purge`)."""
        bucket, key = _object(uri)
        self._fs.call_s3("delete_object", Bucket=bucket, Key=key)

    def purge(self, uri: str) -> None:
        """Removes the object, its older versions and its delete markers."""
        bucket, key = _object(uri)
        self.delete(uri)
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": key}
        while True:
            page = self._fs.call_s3("list_object_versions", **request)
            for entry in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                if entry["Key"] == key and entry.get("VersionId") not in {None, "null"}:
                    self._fs.call_s3("delete_object", Bucket=bucket, Key=key, VersionId=entry["VersionId"])
            if not page.get("IsTruncated"):
                return
            request["KeyMarker"] = page.get("NextKeyMarker", "")
            request["VersionIdMarker"] = page.get("NextVersionIdMarker", "")

    def ping(self, uri: str) -> None:
        """Asks for one entry of the prefix."""
        bucket, key = split_bucket(parent(uri))
        self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)

    def _pages(self, request: dict[str, Any], skip: int) -> Iterator[ObjectInfo]:
        while True:
            page = self._fs.call_s3("list_objects_v2", **request)
            for entry in page.get("Contents", []):
                name = entry["Key"][skip:]
                if name and not name.endswith("/"):  # some tools mark folders by empty objects
                    yield ObjectInfo(name, int(entry["Size"]), entry["LastModified"].astimezone(UTC))
            if not page.get("IsTruncated"):
                return
            request = request | {"ContinuationToken": page["NextContinuationToken"]}

    def _get(self, uri: str, max_bytes: int | None, **conditions: str) -> bytes:
        from fsspec.asyn import sync

        bucket, key = _object(uri)

        async def fetch() -> bytes:
            answer = await self._fs._call_s3("get_object", Bucket=bucket, Key=key, **conditions)
            body = answer["Body"]
            try:
                announced = int(answer["ContentLength"])
                check_size(uri, announced, max_bytes)
                data: bytes = await body.read()
            finally:
                body.close()
            check_length(len(data), announced)
            return data

        result: bytes = sync(self._fs.loop, fetch)
        return result

    def _require_bucket(self, bucket: str) -> None:
        # The answer to a HEAD has no body, so an absent key and an absent bucket look the same.
        try:
            self._fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except OSError as error:
            # One who may not list the bucket is told about the key alone.
            if meaning(error) is not Meaning.REFUSED or (service_code(error) or ("",))[0] == "NoSuchBucket":
                raise


def _object(uri: str) -> tuple[str, str]:
    bucket, key = split_bucket(uri)
    if not key:
        raise FileNotFoundError(errno.ENOENT, "names a bucket, not an object", uri)
    return bucket, key
