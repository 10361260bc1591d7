"""Times in answers of S3 are read alike, and a session knows its profile and sends few checksums."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiobotocore.session import AioSession
from botocore.model import ServiceModel

from segmint.infra.storage import s3
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.s3 import make_session, parse_time
from segmint.infra.storage.storage import Storage
from tests.support.tiny_s3 import Answer, Request, TinyS3, refusal, tiny_s3


@pytest.mark.parametrize(
    "text",
    ["2026-02-03T04:05:06.000Z", "2026-02-03T04:05:06Z", "2026-02-03T05:05:06+01:00", "Tue, 03 Feb 2026 04:05:06 GMT"],
)
def test_a_time_is_the_same_however_it_is_written(text: str) -> None:
    assert parse_time(text) == datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


def test_seconds_since_1970_are_left_to_botocore() -> None:
    assert parse_time(86_400) == parse_time("86400") == datetime(1970, 1, 2, tzinfo=UTC)


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="soon"):
        parse_time("soon")


def test_clients_of_a_session_read_times_so() -> None:
    parser = make_session(None).get_component("response_parser_factory").create_parser("rest-xml")
    assert parser._timestamp_parser is parse_time  # noqa: SLF001 - what botocore made of it


PAGE = b"""<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>
<IsTruncated>true</IsTruncated><NextContinuationToken>next</NextContinuationToken><Contents><Key>a%20&amp;</Key>
<LastModified>2026-02-03T04:05:06.000Z</LastModified><ETag>"1"</ETag><Size>9</Size><StorageClass>STANDARD</StorageClass>
</Contents><Contents><Key>b</Key><Size>0</Size><LastModified>Tue, 03 Feb 2026 04:05:06 GMT</LastModified><Owner><ID>1
</ID></Owner></Contents><Contents><Key>c</Key></Contents><CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes>
</ListBucketResult>"""


def test_a_page_of_a_listing_is_read_as_botocore_reads_it() -> None:
    answer = {"body": PAGE, "headers": {}, "status_code": 200}
    used = ("Key", "Size", "LastModified")
    found, read = [], []
    for session in (make_session(None), AioSession()):
        service = ServiceModel(session.get_component("data_loader").load_service_model("s3", "service-2"), "s3")
        parser = session.get_component("response_parser_factory").create_parser("rest-xml")
        page = asyncio.run(parser.parse(answer, service.operation_model("ListObjectsV2").output_shape))
        read.append(list(page["Contents"][0]))
        page["Contents"] = [{name: entry[name] for name in used if name in entry} for entry in page["Contents"]]
        found.append(page)
    assert found[0] == found[1]
    assert sorted(read[0]) == sorted(used) != sorted(read[1])
    assert [entry["Key"] for entry in found[0]["Contents"]] == ["a%20&", "b", "c"]


def test_a_profile_is_taken_from_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("[profile vendor]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    assert make_session("vendor").get_config_variable("region") == "eu-north-1"
    assert make_session(None).get_config_variable("region") is None


@pytest.fixture(scope="module")
def server() -> Iterator[TinyS3]:
    with tiny_s3() as server:
        yield server


REFUSALS = [(501, "NotImplemented"), (400, "InvalidArgument"), (400, "XAmzContentSHA256Mismatch")]


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_stores_that_refuse_checksums_take_every_write(
    server: TinyS3, status: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def policy(request: Request, answer: Answer) -> Answer:
        if any("checksum" in f"{name} {value}".lower() for name, value in request.headers.items()):
            return refusal(status, code)
        return answer

    server.reset()
    server.policy = policy
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    storage = Storage(server.options, RetryPolicy(attempts=1))
    storage.put("s3://acme/a", b"1")
    assert storage.put_if_absent("s3://acme/b", b"2")
    (tmp_path / "large").write_bytes(bytes(6 << 20))
    storage.put_file("s3://acme/c", tmp_path / "large")
    assert (storage.read("s3://acme/a"), storage.size("s3://acme/c")) == (b"1", 6 << 20)
    storage.delete("s3://acme/a")
    assert sorted(server.objects) == ["b", "c"]


@pytest.mark.parametrize("by", ["environment", "configuration"])
def test_a_user_may_ask_for_all_checksums(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("request_checksum_calculation", "response_checksum_validation")
    config = tmp_path / "config"
    config.write_text("[default]\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name in names:
        monkeypatch.delenv(f"AWS_{name.upper()}", raising=False)
        assert make_session(None).get_config_variable(name) == "when_required"
        if by == "environment":
            monkeypatch.setenv(f"AWS_{name.upper()}", "when_supported")
        else:
            config.write_text(config.read_text() + f"{name} = when_supported\n")
        assert make_session(None).get_config_variable(name) == "when_supported"
