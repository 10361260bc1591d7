"""The accounting: every row is written, rejected or left, and what is left is told."""

from collections import Counter
from dataclasses import replace

from pipeline.accounting import Accounting

WHOLE = Accounting(
    dataset="d", rows=8, written=6, rejected={"not_found": 1, "truncated": 1}, masks=40, shards=3, seconds=2.0
)


def test_the_identity_holds_or_is_seen_not_to() -> None:
    assert WHOLE.balanced
    assert not Accounting(dataset="d", rows=8, written=6, rejected={"not_found": 1}).balanced
    assert Accounting(dataset="d", rows=8, written=5, rejected={"not_found": 1}, missing=[2], missing_rows=2).balanced


def test_a_person_reads_reasons_rates_and_what_is_left() -> None:
    text = "\n".join(WHOLE.lines())
    assert "6 images with 40 masks in 3 shards" in text
    assert "nothing was left to do" in text
    run = Accounting(
        dataset="d",
        rows=8,
        written=4,
        rejected=Counter({"not_found": 1}),
        missing=[2],
        missing_rows=3,
        built_rows=5,
        built_masks=30,
        seconds=2.0,
    )
    text = "\n".join(run.lines())
    assert "3 rows in 1 shards, for a next run" in text
    assert "2.5 images/s, 15 masks/s" in text
    idle = "\n".join(replace(run, built_rows=0).lines())
    assert "nothing was left to do" not in idle
    message = run.unfinished_message({2: "the store does not answer"})
    assert "shard 2: the store does not answer" in message
    assert "nothing is lost" in message
