"""Categories of an export: their order, vocabularies, and labels that a format can't hold."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.reader import Dataset
from segmint.infra.errors import UsageError
from segmint.pipeline.commands.cli import app
from segmint.pipeline.export.categories import Categories, choose_categories, count_labels, parse_vocabulary
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from tests.support.committed import row_of, write_dataset
from tests.support.locations import location_of
from tests.support.mask_labels import LABELS, labeled_row, labels_of


def test_object_is_first_and_labels_are_sorted() -> None:
    assert choose_categories(Format.COCO, {}) == Categories(("object",))
    chosen = choose_categories(Format.COCO, {"zebra": 1, "Ant": 2, "object": 3, "ant": 1})
    assert chosen.names == ("object", "Ant", "ant", "zebra")
    assert [chosen.number_of(label) for label in (None, "", "object", "ant")] == [0, 0, 0, 2]


def test_a_vocabulary_sets_the_order_and_the_place_of_object() -> None:
    assert choose_categories(Format.COCO, {"b": 1}, ("c", "b")).names == ("object", "c", "b")
    placed = choose_categories(Format.COCO, {"b": 1}, ("c", "b", "object"))
    assert placed.names == ("c", "b", "object")
    assert placed.number_of(None) == 2


def test_labels_that_a_vocabulary_lacks_are_listed_with_their_masks() -> None:
    with pytest.raises(UsageError, match=r"lacks labels of the dataset: 'b' \(1 mask\), 'd' \(12 masks\)\. Add"):
        choose_categories(Format.COCO, {"d": 12, "b": 1, "c": 3, "object": 1}, ("c",))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"a\n\nb\n", "line 2: blank"),
        (b"a\n \t\n", "line 2: blank"),
        (b"a\nb\na", "line 3: 'a' is already on line 1"),
        (b"a\n\xff", "line 2: expected UTF-8"),
        (b"", "is empty"),
    ],
)
def test_a_wrong_line_of_a_vocabulary_is_named(data: bytes, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_vocabulary(data, "names.txt")


def test_a_vocabulary_may_come_from_windows() -> None:
    assert parse_vocabulary("\ufeffné, e\r\nb\u2028c\r\n".encode(), "names.txt") == ("né, e", "b\u2028c")


@pytest.mark.parametrize(
    ("format", "label"),
    [
        (Format.CVAT, "two\nlines"),
        (Format.CVAT, "x" * 65),
        (Format.LABEL_STUDIO, "nul\0"),
        (Format.LABEL_STUDIO, "costs $image"),
        (Format.LABEL_STUDIO, " spaces "),
    ],
)
def test_a_label_that_a_format_cannot_hold_is_refused_before_anything_is_written(
    format: Format, label: str, tmp_path: Path
) -> None:
    def make_row(ordinal: int, refused: bool) -> dict[str, object]:
        row = row_of(ordinal, refused)
        if ordinal == 1:
            row["masks"][1] |= {"label": label, "label_source": "import"}
        return row

    write_dataset(location_of(tmp_path / "one"), shards=1, make_row=make_row)
    with pytest.raises(UsageError, match=rf"{format} can't hold these labels: .*\(1 mask\)"):
        export_dataset(location_of(tmp_path / "one"), ExportOptions(format), location_of(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    export_dataset(location_of(tmp_path / "one"), ExportOptions(Format.COCO), location_of(tmp_path / "coco"))


def test_the_reader_gives_each_mask_its_label(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "one"), shards=3, make_row=labeled_row)
    dataset = Dataset.open(location_of(tmp_path / "one"))
    expected = labels_of(dataset)
    found = {mask.id: mask.label for sample in dataset for mask in sample.masks}
    assert found == expected
    assert sum(label is None for label in found.values()) == 3
    assert count_labels(dataset).keys() == set(LABELS)


def test_the_command_takes_a_vocabulary(tmp_path: Path) -> None:
    def export(vocabulary: Path) -> tuple[int, str]:
        arguments = [tmp_path / "one", "--format", "coco", "--no-images", "-o", tmp_path / "out", "--vocabulary"]
        done = CliRunner().invoke(app, ["export", *map(str, arguments), str(vocabulary)])
        return done.exit_code, done.stderr

    write_dataset(location_of(tmp_path / "one"), shards=3, make_row=labeled_row)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(LABELS[:-1]))
    code, said = export(names)
    assert (code, "'back\\\\slash, comma; tab-less' (1 mask)" in said) == (2, True)
    code, said = export(tmp_path / "missing.txt")
    assert (code, "missing.txt does not exist" in said) == (2, True)
    assert not (tmp_path / "out").exists()
    names.write_text("\n".join(LABELS))
    assert export(names) == (0, "")
