"""Every file below a dataset's root is accounted for, in many shards and next to running commands."""

import tracemalloc

import pytest

from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.quality.versions.verify import verify_dataset
from tests.support.faulty_proxy import faulty_proxy
from tests.support.many_shards import write_many_shards
from tests.support.s3_server import S3Server

SHARDS = 150


@pytest.mark.s3
@pytest.mark.long
def test_verifying_1000_shards_takes_few_requests_and_little_memory(s3_server: S3Server, s3_bucket: str) -> None:
    with faulty_proxy(s3_server.port) as proxy:
        dataset = Location(Storage({"s3://": {"endpoint_url": proxy.url}}), f"s3://{s3_bucket}/dataset")
        keys = write_many_shards(dataset, SHARDS)
        assert keys == 5 * SHARDS + 2
        verify_dataset(dataset)  # imports
        proxy.requests.clear()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        found = verify_dataset(dataset)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    assert (found.problems, found.files) == ((), keys)
    # A commit is read in one request; a file that it names is looked at before it is streamed.
    reads = SHARDS + 2 * 4 * SHARDS
    print(f"{len(proxy.requests) - reads} further requests; {peak / keys:.0f} bytes per key")
    assert len(proxy.requests) - reads <= keys / 1000 + 20
    assert peak <= 500 * keys
