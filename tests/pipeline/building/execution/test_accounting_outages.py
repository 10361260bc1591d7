"""Outages in the driver: which stores do not answer, waiting for them, and an error that says what to do."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from segmint.infra.errors import UnfinishedError
from segmint.infra.storage.errors import AccessRefusedError, UnavailableError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.execution.accounting import MOST_STORES, Outages, resumable
from tests.support.faulty_proxy import FaultyProxy, answer, faulty_proxy
from tests.support.s3_server import S3Server

pytestmark = pytest.mark.s3


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server.port) as proxy:
        yield proxy


def outages(proxy: FaultyProxy, bucket: str, tmp_path: Path, timeout_s: float = 60) -> Outages:
    storage = Storage({"s3://": {"endpoint_url": proxy.url}})
    return Outages(storage, str(tmp_path / "catalog.csv"), [f"s3://{bucket}/set"], timeout_s)


def test_the_stores_that_do_not_answer_are_named(
    proxy: FaultyProxy, s3_bucket: str, make_bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_bucket()
    run = outages(proxy, s3_bucket, tmp_path)
    uris = [f"s3://{other}/{index}.jpg" for index in range(3)] + ["beside.jpg", "ftp://not.allowed/x"]
    run.expect(lambda: uris)
    assert run.silent() == []
    proxy.policy = lambda method, target: answer(503, "SlowDown") * (other in target)
    assert run.silent() == [f"s3://{other}"]
    proxy.policy = lambda method, target: answer(403, "AccessDenied")
    assert run.silent() == [], "a store that refuses us is no outage"
    proxy.go_down()
    assert run.silent() == [f"s3://{s3_bucket}", f"s3://{other}"]
    assert capsys.readouterr().err.count("waiting for stores") == 1, "it is told once a minute"
    run.expect(lambda: ["beside.jpg"])
    assert run.silent() == [f"s3://{s3_bucket}"], "the stores are those of the window"


def test_a_check_that_ends_after_its_window_does_not_replace_the_next_window_s_stores(tmp_path: Path) -> None:
    run = Outages(Storage(), str(tmp_path / "catalog.csv"), [], 60)

    def slow() -> list[str]:
        run.expect(lambda: ["s3://next/x.jpg"])
        return ["s3://before/x.jpg"]

    run.expect(slow)
    run.read_examples()
    run.read_examples()
    assert [name for name in run.examples if name.startswith("s3://")] == ["s3://next"]


def test_of_very_many_stores_some_are_checked(proxy: FaultyProxy, s3_bucket: str, tmp_path: Path) -> None:
    run = outages(proxy, s3_bucket, tmp_path)
    run.expect(lambda: (f"s3://bucket-{index:03}/x.jpg" for index in range(1000)))
    proxy.go_down()
    assert len(run.silent()) == MOST_STORES - 1  # the catalog is a local file


def test_no_row_of_a_catalog_makes_the_checks_fail(tmp_path: Path) -> None:
    """Each of these gets a verdict or a fault in its own row."""
    hostile = [
        "a%0Ab.jpg",
        "a\0.jpg",
        f"file://{tmp_path}/a%0Ab.jpg",
        f"file://{tmp_path}/a%00b.jpg",
        "",
        "..",
        "s3://",
    ]
    hostile += ["gs://bucket/x.jpg", "abfss://c@a/x.jpg", "gcs://nowhere:1/x.jpg", "x" * 8192, "a" * 8192 + "/x.jpg"]
    run = Outages(Storage(), str(tmp_path / "catalog.csv"), [str(tmp_path / "set")], timeout_s=1)
    run.expect(lambda: hostile)
    assert run.silent() == []
    assert not run.wait_out([1])


def test_an_outage_is_waited_for(proxy: FaultyProxy, s3_bucket: str, tmp_path: Path) -> None:
    run = outages(proxy, s3_bucket, tmp_path)
    assert not run.wait_out([1])
    proxy.be_out_for(1)
    assert run.wait_out([1])
    assert not run.wait_out([1])


def test_a_wait_has_an_end_with_advice(proxy: FaultyProxy, s3_bucket: str, tmp_path: Path) -> None:
    run = outages(proxy, s3_bucket, tmp_path, timeout_s=0.2)
    proxy.go_down()
    with pytest.raises(UnfinishedError, match=r"s3://.*outage_timeout_s = 0\.2.*2 shards missing") as caught:
        run.wait_out([1, 4])
    assert "then run the same command again" in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_fault_that_ends_a_run_says_that_nothing_is_lost() -> None:
    for fault in (AccessRefusedError("check the credentials"), UnavailableError("given up after 5 attempts")):
        with pytest.raises(UnfinishedError, match=f"{fault}\nNothing is lost") as caught, resumable():
            raise fault
        assert caught.value.exit_code == 3
