"""Labels that a user gives, from a column or a file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.evaluate.points import Groups, check_groups, read_groups


def read(file: Path | str) -> Groups:
    return read_groups(str(file), Storage())


def row(image_id: str, mask: int = 7, group: str | None = None) -> dict[str, object]:
    return {"image_id": image_id, "image": f"{image_id}.jpg", "mask": mask, "group": group}


def test_files_label_images_by_id_or_name_and_masks_by_id(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("image_id,skin\na,1-2\nb.jpg,5-6\nc,\n", encoding="utf-8-sig")
    groups = read(tmp_path / "images.csv")
    assert (groups.by, [groups.of(row(id)) for id in "abcd"]) == ("skin", ["1-2", "5-6", None, None])
    pq.write_table(pa.table({"kind": ["x", "y"], "annotation_id": [7, 8]}), tmp_path / "masks.parquet")
    groups = read(tmp_path / "masks.parquet")
    assert [groups.of(row("a", mask)) for mask in (7, 8, 9)] == ["x", "y", None]


def test_a_name_without_an_ending_is_a_column() -> None:
    assert read("country").image_columns == ("country",)
    assert read("label").image_columns == ()
    assert read("label").of(row("a", group="cup")) == "cup"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no rows: expected image_id or annotation_id"),
        ("name,group\na,b\n", "has name, group: expected"),
        ("image_id,annotation_id\na,1\n", "expected image_id or annotation_id, and one more"),
        ("image_id,g,h\na,b,c\n", "has image_id, g, h: expected"),
        ("image_id,g\na,x\na,y\n", "row 2: image_id a is in 'x' and in 'y'"),
        ("image_id,g\na,\n", "has no label"),
        ("image_id,g\na,x\nb,red, blue\n", "row 2 has more than 2 values: expected"),
        ('image_id,g\na,"x\n', "can't read"),
    ],
)
def test_a_file_of_another_form_is_an_error(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(UsageError, match=why):
        read(tmp_path / "groups.csv")


def test_a_missing_file_and_too_many_groups(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="no evaluated mask has a value for country"):
        check_groups(Groups("country"), set())
    with pytest.raises(UsageError, match="has 51 values, such as 0, 1, 10: expected at most 50"):
        check_groups(Groups("id"), {str(number) for number in range(51)})
