"""The server is killed at any moment: what it acknowledged is there once, and nothing else."""

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from segmint.catalogs.dataset.submissions import list_submissions, read_submissions
from tests.support.annotating import acting_as, annotate_process, draft
from tests.support.described_rows import rectangle_mask
from tests.support.locations import location_of

IMAGES = (1, 2, 4, 5, 6, 7)


@contextmanager
def running(dataset: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`segmint annotate` as a separate process, and a browser that has opened its address; it is killed at the end."""
    with annotate_process(dataset) as (process, address):
        origin = address.partition("/?")[0]
        headers = {**acting_as("ann"), "origin": origin}
        with httpx.Client(base_url=origin, headers=headers, timeout=60) as client:
            for _ in range(100):
                try:
                    assert client.get(address).status_code == 303
                    break
                except httpx.ConnectError:
                    time.sleep(0.1)
            yield process, client


Bodies = dict[tuple[int, int], dict[str, Any]]
"""Answers as they were sent, by image and number."""


def work(
    process: "subprocess.Popen[str]",
    client: httpx.Client,
    sent: Bodies,
    acknowledged: Bodies,
    rng: random.Random,
    *,
    clicks: bool,
) -> None:
    """Open images, click, and save, until the server is gone; note what was sent, and what it acknowledged.

    It is killed at a random moment after a few answers. Without `clicks`, whose embeddings take seconds, it gets masks
    that are drawn.
    """
    last = len(acknowledged) + rng.randint(1, 4)
    killer = threading.Timer(rng.uniform(0.0, 0.5), process.kill)
    while True:
        if len(acknowledged) >= last and not killer.ident:
            killer.start()
        image = rng.choice(IMAGES)
        try:
            told = client.get(f"/api/images/{image}").raise_for_status().json()
            masks = []
            has_mask = rng.random() < 0.5
            if has_mask and not clicks:
                masks = [rectangle_mask(*told["size"], 0, 0, rng.randint(1, 90), 50)["segmentation"]["counts"]]
            elif has_mask:
                point = [rng.uniform(1, told["size"][1] - 1), rng.uniform(1, told["size"][0] - 1), 1]
                answer = client.post(f"/api/images/{image}/predict", json={"prompt": {"points": [point]}})
                if answer.status_code == 503:
                    continue  # on a busy machine, the image's embedding isn't ready in time
                assert answer.status_code == 200, answer.text
                masks = [mask["counts"] for mask in answer.json()["masks"] if mask["area"]][:1]
            n = told["n"] + 1
            body = draft(told, masks, seconds=rng.uniform(1, 100))
            sent[image, n] = body
            assert client.put(f"/api/images/{image}/submissions/{n}", json=body).status_code == 201
            acknowledged[image, n] = body
        except httpx.HTTPError:
            return


def kill_often(dataset: Path, kills: int, seed: int, *, clicks: bool) -> int:
    """Kill the server so often while one person works; return how many answers were acknowledged."""
    rng = random.Random(seed)
    sent: Bodies = {}
    acknowledged: Bodies = {}
    for _ in range(kills):
        with running(dataset) as (process, client):
            work(process, client, sent, acknowledged, rng, clicks=clicks)
        check(dataset, sent, acknowledged)
    return len(acknowledged)


def check(dataset: Path, sent: Bodies, acknowledged: Bodies) -> None:
    """Check that what was acknowledged is there as it was sent, and at most what was under way at the kill beside."""
    location = location_of(dataset)
    kept = {(each.image, each.n): each for image in IMAGES for each in read_submissions(location, image - 1)}
    assert kept.keys() >= acknowledged.keys()
    assert len(kept.keys() - acknowledged.keys()) <= 1
    for key, answer in kept.items():
        assert (answer.annotator, answer.base, answer.seconds) == ("ann", sent[key]["base"], sent[key]["seconds"])
        assert [mask.counts for mask in answer.masks] == [mask["counts"] for mask in sent[key]["masks"]]
        acknowledged[key] = sent[key]
    names = sorted((name.ordinal + 1, name.n) for name in list_submissions(location))
    assert names == sorted(kept)
    for image in IMAGES:
        assert [n for each, n in names if each == image] == list(range(1, 1 + sum(each == image for each, _ in names)))


def test_a_kill_loses_nothing(dataset: Path) -> None:
    assert kill_often(dataset, kills=1, seed=1, clicks=False) >= 1


@pytest.mark.long
def test_twenty_kills_lose_nothing(dataset: Path) -> None:
    assert kill_often(dataset, kills=20, seed=2, clicks=True) >= 20
