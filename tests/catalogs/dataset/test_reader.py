"""A dataset is read back as it was written: only committed shards, in order."""

import base64
import html
import io
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.mask_labels import MASK_LABEL
from segmint.catalogs.dataset.reader import Dataset, NoPixelsError
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import UriNotAllowedError
from tests.support.bombs import hostile_tar, jpeg_saying
from tests.support.committed import masks, pixels, row_of, write_dataset, write_generation
from tests.support.committed_shard import CommittedShard
from tests.support.locations import location_of
from tests.support.mask_labels import PROMPTS, labeled_row, prompted_row


def check(dataset: Dataset) -> None:
    samples = list(dataset)
    assert len(dataset) == len(samples)
    assert [sample.id for sample in samples] == [1, 2, 4, 5, 7, 8]
    for sample in samples:
        ordinal = sample.row["ordinal"]
        assert sample.row["image_id"] == f"image-{ordinal}"
        assert sample.row["attribution"] == "Zoë"
        assert sample.image.shape == (60, 80, 3)
        assert np.abs(sample.image.astype(int) - pixels(ordinal)).mean() < 5
        for annotation, mask in zip(sample.masks, masks(ordinal), strict=True):
            np.testing.assert_array_equal(annotation.mask, mask)
            assert annotation.area == mask.sum()
            assert annotation.size == (60, 80)
        assert [annotation.id for annotation in sample.masks] == [sample.id * 10_000, sample.id * 10_000 + 1]
        assert sample.masks[0].bbox == (20, 10, 29, 19)
        assert sample.masks[0].point_coords == ((30, 20),)


def test_samples_are_what_was_written(dataset: str) -> None:
    assert open_dataset(dataset).uri == dataset
    check(open_dataset(dataset))


def test_a_sample_says_in_a_line_what_it_is_and_shows_its_image(dataset: str) -> None:
    sample = next(iter(open_dataset(dataset)))
    assert repr(sample) == "Sample(id=1, image_id='image-0', 80 x 60, 2 masks)"
    assert repr(sample.masks[0]).startswith(
        "MaskAnnotation(id=10000, area=600, bbox=(20, 10, 29, 19), predicted_iou=0."
    )
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', sample._repr_html_())
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    assert np.abs(shown - sample.image).mean() < 4
    for bare in (replace(sample, jpeg=None), replace(sample, jpeg=b"no picture")):
        assert bare._repr_html_() == f"<code>{html.escape(repr(sample))}</code>"


@pytest.mark.s3
def test_samples_come_from_s3(s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/some/dataset"
    write_dataset(Location(storage, uri), shards=3)
    check(open_dataset(uri, storage))


def test_only_committed_shards_are_read(dataset: str) -> None:
    storage = Storage()
    opened = open_dataset(dataset)
    Path(dataset, "commits/000001.g1.json").unlink()
    assert [sample.id for sample in opened] == [1, 2, 7, 8]
    write_generation(Location(storage, dataset), shard=2, generation=2, refuse=2)
    assert [sample.id for sample in opened] == [1, 2, 7]
    assert len(opened) == 3


def test_tables_of_a_shard(dataset: str) -> None:
    opened = open_dataset(dataset)
    commit = next(opened.commits())
    assert opened.table(commit, "masks").num_rows == 4
    assert opened.table(commit, "rejects").column("reason").to_pylist() == ["not_an_image"]


def test_annotations_without_images_say_where_the_image_is(tmp_path: Path) -> None:
    uri = str(tmp_path / "dataset")
    write_dataset(location_of(uri), shards=1, with_images=False)
    sample = next(iter(open_dataset(uri)))
    assert sample.jpeg is None
    assert sample.masks[1].mask.sum() == sample.masks[1].area
    with pytest.raises(NoPixelsError, match=r"/photos/0\.jpg"):
        _ = sample.image


def test_a_jpeg_that_cannot_be_decoded_says_whose_it_is(dataset: str) -> None:
    sample = next(iter(open_dataset(dataset)))
    huge = jpeg_saying(65_500, 65_500)
    for jpeg, told in ((huge, "65500 x 65500 is 4,290,250,000 pixels; at most 250,000,000"), (b"no jpeg", "")):
        with pytest.raises(DamagedDatasetError, match=f"image 1: its JPEG cannot be decoded: {told}"):
            _ = replace(sample, jpeg=jpeg).image


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (b"[" * 200_000, "RecursionError"),
        (b"[]", "the JSON of image 1: TypeError"),
        (b"{}", "the JSON of image 1: KeyError: 'image'"),
        (b'{"image":{"image_id":1},"annotations":[null]}', "the JSON of image 1: TypeError"),
        (b'{"image":{"image_id":2},"annotations":[]}', "does not contain image 1"),
    ],
)
def test_a_json_of_another_form_is_damage(dataset: str, document: bytes, told: str) -> None:
    taken = CommittedShard(Path(dataset), 0)
    taken.edit_member(1, lambda _: document)
    taken.write()
    with pytest.raises(DamagedDatasetError, match=told):
        list(open_dataset(dataset))


def test_a_mask_of_another_size_is_damage(dataset: str) -> None:
    taken = CommittedShard(Path(dataset), 0)
    taken.edit_member(1, lambda data: data.replace(b'"size":[60,80]', b'"size":[60000,80000]'))
    taken.write()
    with pytest.raises(DamagedDatasetError, match=r"has the size \(60000, 80000\); image 1 has \(60, 80\)"):
        list(open_dataset(dataset))


def test_no_dataset_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        open_dataset(str(tmp_path))


JUNK_FOOTER = b"PAR1" + b"\xff" * 64 + (64).to_bytes(4, "little") + b"PAR1"


@pytest.mark.parametrize(("kind", "data"), [("shards", b"x" * 10240), ("images", b"x" * 999), ("images", JUNK_FOOTER)])
def test_damage_is_named(dataset: str, kind: str, data: bytes) -> None:
    commit = CommitLog(location_of(dataset)).latest(1)
    assert commit is not None
    path = Path(dataset, commit.file(kind).path)
    path.write_bytes(data)
    with pytest.raises(DamagedDatasetError, match=path.name):
        list(open_dataset(dataset))


def test_a_tar_of_another_shard_is_damage(dataset: str) -> None:
    log = CommitLog(location_of(dataset))
    one, two = log.latest(0), log.latest(1)
    assert one is not None
    assert two is not None
    Path(dataset, one.file("shards").path).write_bytes(Path(dataset, two.file("shards").path).read_bytes())
    with pytest.raises(DamagedDatasetError, match="does not contain image 1"):
        list(open_dataset(dataset))


@pytest.mark.parametrize(
    ("kind", "told"),
    [(b"2", "is not a regular file"), (b"S", "is not a regular file"), (b"0", "at most 268,435,456 are read")],
)
def test_a_tar_of_links_or_holes_is_not_followed(dataset: str, kind: bytes, told: str) -> None:
    commit = CommitLog(location_of(dataset)).latest(0)
    assert commit is not None
    Path(dataset, commit.file("shards").path).write_bytes(hostile_tar("sa_1.json", kind))
    with pytest.raises(DamagedDatasetError, match=told):
        list(open_dataset(dataset))


@pytest.mark.parametrize("path", ["shards/../../../etc/passwd", "shards/../dataset.json"])
def test_a_commit_that_climbs_out_of_its_dataset_is_refused(dataset: str, path: str) -> None:
    log = CommitLog(location_of(dataset))
    commit = log.latest(0)
    assert commit is not None
    entry = replace(commit.file("shards"), path=path)
    hostile = replace(commit, files=(entry, *(file for file in commit.files if not file.path.startswith("shards/"))))
    Path(dataset, "commits/000000.g1.json").write_bytes(hostile.to_json())
    with pytest.raises(UriNotAllowedError, match="not allowed"):
        list(open_dataset(dataset))


def test_json_nested_without_end_is_damage(dataset: str) -> None:
    deep = b"[" * 200_000
    Path(dataset, "commits/000000.g1.json").write_bytes(deep)
    with pytest.raises(DamagedDatasetError, match="is not a commit"):
        list(open_dataset(dataset))
    Path(dataset, "dataset.json").write_bytes(deep)
    with pytest.raises(UsageError, match="is not a dataset's manifest"):
        open_dataset(dataset)


def test_some_images_of_a_shard_are_read_and_no_further(dataset: str) -> None:
    opened = open_dataset(dataset)
    first, *_ = opened.commits()
    assert [sample.id for sample in opened.shard(first, {2})] == [2]
    assert [sample.id for sample in opened.shard(first, range(1, 2))] == [1]
    path = Path(dataset, first.file("shards").path)
    whole = path.read_bytes()
    second = whole.index(b"sa_2.jpg")
    path.write_bytes(whole[:second])
    assert [sample.id for sample in opened.shard(first, {1})] == [1]
    with pytest.raises(DamagedDatasetError):
        list(opened.shard(first, {2}))
    path.unlink()
    assert list(opened.shard(first, {4})) == []


def test_some_shards_and_some_columns(dataset: str) -> None:
    opened = open_dataset(dataset)
    assert [commit.shard for commit in opened.commits({2, 0, 9})] == [0, 2]
    commit = next(opened.commits())
    assert opened.table(commit, "images", ["id", "country"]).to_pydict() == {"id": [1, 2], "country": [None, None]}


def test_without_torch_it_is_the_same(dataset: str) -> None:
    check(Dataset.open(location_of(dataset)))


def test_a_table_without_a_column_that_samples_need_is_named(dataset: str) -> None:
    path = next(Path(dataset, "images").iterdir())
    pq.write_table(pq.read_table(path).drop_columns(["width"]), path)
    with pytest.raises(DamagedDatasetError, match=rf"{path.name} does not have the columns of images: no width"):
        list(open_dataset(dataset))


def test_masks_have_their_labels_in_samples_and_in_batches(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "labeled"), shards=3, make_row=labeled_row)
    opened = open_dataset(str(tmp_path / "labeled"))
    rows = [row for commit in opened.commits() for row in opened.table(commit, "masks").to_pylist()]
    expected = {row["annotation_id"]: tuple(row[name] for name in MASK_LABEL) for row in rows}
    batched = [sample for batch in opened.batches(2) for sample in batch]
    for samples in (list(opened), batched, pickle.loads(pickle.dumps(batched))):
        masks = [mask for sample in samples for mask in sample.masks]
        assert {mask.id: (mask.label, mask.label_score, mask.label_source) for mask in masks} == expected
    assert sum(label is None for label, _, _ in expected.values()) == 3


def test_masks_have_their_prompts_in_samples_and_in_batches(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "prompted"), shards=2, make_row=prompted_row)
    opened = open_dataset(str(tmp_path / "prompted"))
    batched = [sample for batch in opened.batches(2) for sample in batch]
    for samples in (list(opened), batched, pickle.loads(pickle.dumps(batched))):
        masks = [mask for sample in samples for mask in sample.masks]
        assert [mask.prompts for mask in masks] == [PROMPTS, ()] * len(samples)
        assert {mask.label for mask in masks[::2]} == {None, "no"}
        assert len({*masks}) == len(masks)


def test_a_table_is_opened_once_for_its_labels_and_only_its_footer_is_read_without_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens: list[str] = []
    plain = Location.open
    monkeypatch.setattr("segmint.catalogs.dataset.reader.WHOLE_BYTES", 0)
    monkeypatch.setattr(Location, "open", lambda self: (opens.append(self.uri), plain(self))[1])
    for name, make_row in (("labeled", labeled_row), ("prompted", prompted_row), ("plain", row_of)):
        write_dataset(location_of(tmp_path / name), shards=1, make_row=make_row)
        opened = open_dataset(str(tmp_path / name))
        (commit,) = opened.commits()
        path = tmp_path / name / commit.file("masks").path
        data = path.read_bytes()
        footer = len(data) - int.from_bytes(data[-8:-4], "little") - 8
        if name == "plain":  # the columns can't be read
            path.write_bytes(b"PAR1" + bytes(footer - 4) + data[footer:])
        masks = [mask for batch in opened.batches(1) for sample in batch for mask in sample.masks]
        assert any(mask.label or mask.prompts for mask in masks) == (name != "plain")
        assert sum(uri.endswith(path.name) for uri in opens) == 1


def test_labels_that_are_no_text_and_a_table_without_labels_are_damage(tmp_path: Path) -> None:
    for name in ("text", "none"):
        write_dataset(location_of(tmp_path / name), shards=1, make_row=labeled_row)
        opened = open_dataset(str(tmp_path / name))
        (commit,) = opened.commits()
        path = tmp_path / name / commit.file("masks").path
        table = pq.read_table(path)
        place = table.schema.get_field_index("label")
        wrong = pa.Array.from_buffers(pa.string(), len(table), pa.array([b"\xff"] * len(table)).buffers())
        pq.write_table(table.remove_column(place) if name == "none" else table.set_column(place, "label", wrong), path)
        for read in (opened, opened.batches(1)):
            with pytest.raises(DamagedDatasetError, match=r"masks/.* is not a readable Parquet file"):
                list(read)
