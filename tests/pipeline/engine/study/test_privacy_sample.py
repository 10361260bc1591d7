"""A privacy study's sample: any released image, the same again, and no answers in it."""

import hashlib
import json
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.pipeline.engine.study.privacy import sample_privacy
from tests.support.committed import write_dataset
from tests.support.locations import location_of


def test_what_a_sample_holds_and_that_it_is_the_same_again(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=3)  # images 1, 2, 4, 5, 7, 8
    for name in ("one", "two"):
        done = sample_privacy(location_of(tmp_path / "small"), 3, 1, location_of(tmp_path / name))
        assert (done.images, done.population) == (3, 6)
    folder = tmp_path / "one"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["seed"], manifest["population"]) == ("privacy", 1, 6)
    numbers = [image["id"] for image in manifest["images"]]
    for image in manifest["images"]:
        jpeg = (folder / f"images/sa_{image['id']}.jpg").read_bytes()
        assert image["sha256"] == hashlib.sha256(jpeg).hexdigest()
        assert (image["width"], image["height"]) == (80, 60)
    tasks = json.loads((folder / "tasks.json").read_text())
    assert [(task["data"]["segmint_id"], "annotations" in task) for task in tasks] == [(n, False) for n in numbers]
    assert [label["name"] for label in json.loads((folder / "cvat_labels.json").read_text())] == [
        "face",
        "plate",
        "other",
    ]
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert len(names) == 8
    assert all((folder / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    with pytest.raises(UsageError, match="already exists"):
        sample_privacy(location_of(tmp_path / "small"), 3, 1, location_of(folder))


def test_the_label_config_is_one_of_label_studio(tmp_path: Path) -> None:
    from label_studio_sdk.label_interface import LabelInterface

    from segmint.pipeline.engine.study.privacy import LABELING

    assert LabelInterface(LABELING).get_control("missed").labels == ["face", "plate", "other"]


def test_a_dataset_without_pictures_is_refused(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "empty"), shards=0)
    with pytest.raises(UsageError, match="no committed images"):
        sample_privacy(location_of(tmp_path / "empty"), 2, 0, location_of(tmp_path / "empty-study"))
    write_dataset(location_of(tmp_path / "bare"), shards=1, with_images=False)
    with pytest.raises(UsageError, match="has only annotations"):
        sample_privacy(location_of(tmp_path / "bare"), 2, 0, location_of(tmp_path / "study"))
