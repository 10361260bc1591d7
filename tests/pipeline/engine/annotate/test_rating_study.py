"""Raters of a study see the ground truth's and each model's mask of an object, one at a time, in a random order."""

from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from segmint.catalogs.dataset.ratings import list_ratings
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.rating import SampleOptions, make_rating_app, open_rater_view
from segmint.pipeline.engine.annotate.requests import Team
from segmint.pipeline.engine.study.ratings import score_ratings
from tests.support.annotating import ORIGIN, PORT, acting_as
from tests.support.locations import location_of
from tests.support.rating_study import make_study
from tests.support.trainable import write_trainable


def test_each_version_of_a_mask_is_rated_apart_and_blindly(tmp_path: Path) -> None:
    dataset = location_of(tmp_path / "dataset")
    write_trainable(dataset, shards=1)
    study = make_study(dataset, tmp_path)
    versions = {counts: (each.mask, number) for each in study.objects for number, counts in enumerate(each.counts)}
    assert len(versions) == 9
    seen: dict[str, list[tuple[int, int]]] = {}
    for name in ("ann", "bo"):
        with open_rater_view(dataset, SampleOptions(), study) as view:
            team = Team(PORT, [name])
            client = TestClient(make_rating_app(view, team), base_url=ORIGIN, follow_redirects=False)
            client.get(team.address(name))
            client.headers.update(acting_as(name))
            shown = client.post("/api/rate/next").json()
            while shown["item"] is not None:
                assert set(shown) == {"item", "image", "size", "counts", "n", "score", "done", "total"}
                mask, number = versions[shown["counts"]]
                seen.setdefault(name, []).append((mask, number))
                body = {"score": (10, 7, 4)[number], "seconds": 2.0}
                answer = client.put(f"/api/rate/{shown['item']}/1", json=body)
                assert answer.status_code == 201, answer.text
                shown = answer.json()["next"]
            assert shown == {"item": None, "done": 9, "total": 9}
    assert sorted(seen["ann"]) == sorted(seen["bo"]) == sorted(versions.values())
    assert seen["ann"] != seen["bo"]
    assert [number for _, number in seen["ann"]] != [0, 1, 2] * 3
    assert not list_ratings(dataset)  # ratings of a study are in its folder
    # Masks of another study in the same folder aren't rated yet, unless they are the same.
    objects = [replace(each, counts=(each.counts[0], each.counts[2], each.counts[1])) for each in study.objects]
    with open_rater_view(dataset, SampleOptions(), replace(study, objects=tuple(objects))) as view:
        assert view.progress("ann") == {"done": 3, "total": 9}
        shown = view.next("ann")
        assert (shown["n"], shown["score"]) == (1, None)
    with (
        pytest.raises(UsageError, match="was drawn from another dataset"),
        open_rater_view(dataset, SampleOptions(), replace(study, config_sha256="0" * 64)),
    ):
        pass
    found = score_ratings(study.folder)
    assert [each.mean for each in found.means] == [10, 7, 4]
    assert [each.mean for each in found.differences] == pytest.approx([-3, -6, -3])
    assert (found.masks, found.raters, found.ratings) == (3, 2, 18)
