"""Multipart upload of a large file to S3: each part is retried separately, and a failure leaves nothing behind."""

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from segmint.infra.errors import SegmintError
from segmint.infra.storage.error_kinds import service_code
from segmint.infra.storage.retry import RetryPolicy, with_retries

PART_BYTES = 64 << 20
"""Bytes of a part; a file of more than 10,000 such parts, S3's limit, gets larger ones."""

_AT_ONCE = 4
_MOST_PARTS = 10_000
_POLICY = RetryPolicy()


def put_parts(
    call: Callable[..., Any],
    uri: str,
    bucket: str,
    key: str,
    path: Path,
    stands: Callable[[], int],
    **conditions: str,
) -> None:
    """Upload the file at `path`; `call` makes one request of S3, `stands` gives the size of the object at `uri`.

    The upload is completed under `conditions`; with some, `FileExistsError` if it is gone by then: an earlier try may
    have completed it, or another writer's object ended it, which only the bytes can tell. Raises what `with_retries`
    raises for the part that failed, after the upload was aborted.
    """
    size = path.stat().st_size
    step = max(PART_BYTES, -(-size // _MOST_PARTS))
    # If this answer is lost, an upload without parts is left over, and its id is unknown.
    begun = call("create_multipart_upload", Bucket=bucket, Key=key)
    upload = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}

    def put_part(number: int) -> dict[str, Any]:
        with path.open("rb") as file:
            file.seek((number - 1) * step)
            data = file.read(step)
        answer = with_retries(
            _POLICY,
            "put",
            uri,
            lambda: call("upload_part", size=len(data), **upload, PartNumber=number, Body=data),
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="parts")
        try:
            parts = list(pool.map(put_part, range(1, -(-size // step) + 1)))
        finally:
            pool.shutdown(cancel_futures=True)  # and wait: a part that arrives after the abort would stay
        with_retries(_POLICY, "put", uri, lambda: _complete(call, upload, parts, lambda: stands() == size, conditions))
    except BaseException:
        with suppress(SegmintError):
            with_retries(_POLICY, "abort the upload of", uri, lambda: call("abort_multipart_upload", **upload))
        raise


def _complete(
    call: Callable[..., Any],
    upload: dict[str, Any],
    parts: list[dict[str, Any]],
    is_there: Callable[[], bool],
    conditions: dict[str, str],
) -> None:
    try:
        call("complete_multipart_upload", **upload, **conditions, MultipartUpload={"Parts": parts})
    except OSError as error:
        if (service_code(error) or ("",))[0] != "NoSuchUpload":
            raise
        # The upload is gone: an earlier try may have completed it, and its answer was lost.
        if not conditions and not is_there():
            raise
    else:
        return
    if conditions:  # raised here, as the store's answer would be read for its cause
        raise FileExistsError(errno.EEXIST, "the upload is gone: an object may be there", upload["Key"])
