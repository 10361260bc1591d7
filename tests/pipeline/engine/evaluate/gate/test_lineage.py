"""What weights were trained on, by the record beside them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from segmint.catalogs.lineage import TRAINING, TrainingDatasetRef, TrainingRound
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.evaluate.gate.lineage import lineage_of
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights
from tests.pipeline.engine.evaluate.gate.conftest import put_lineage

Make = Callable[[str], Path]

ONE, TWO = TrainingDatasetRef(name="street", digest="1" * 64), TrainingDatasetRef(name="shop", digest="2" * 64)


def find(path: Path | str):
    return lineage_of(EvaluatedWeights.of(str(path)), Storage())


def test_known_weights_were_not_trained_by_segmint(mobile_sam_path: Path) -> None:
    for name in ("mobile_sam", str(mobile_sam_path)):
        lineage = find(name)
        assert (lineage.known, lineage.rounds, lineage.share) == (True, (), None)
    assert lineage.line() == f"{mobile_sam_path.name}: not trained by segmint"


def test_all_rounds_count_with_the_smallest_share(weights_file: Make) -> None:
    file = weights_file("b")
    put_lineage(file, [(ONE, 0.1), (TWO, 0.2)])
    lineage = find(file)
    assert (lineage.known, lineage.share) == (True, 0.1)
    assert (lineage.names, lineage.digests) == ({"street", "shop"}, {"1" * 64, "2" * 64})
    assert lineage.line() == "b.pth: trained on shop, street, with 10 % held out"


def test_a_round_without_its_share_held_nothing_out(weights_file: Make) -> None:
    file = weights_file("b")
    put_lineage(file, [(ONE, None), (TWO, 0.2)])
    assert find(file).share == 0


def test_weights_without_their_record_are_unknown(weights_file: Make) -> None:
    alone, other = weights_file("alone"), weights_file("other")
    put_lineage(other, [(ONE, 0.1)])
    other.write_bytes(b"weights of another run")
    for file in (alone, other):
        lineage = find(file)
        assert (lineage.known, lineage.rounds) == (False, ())
        assert "no training.json of theirs is beside them" in lineage.line()


def test_a_damaged_record_is_an_error(weights_file: Make) -> None:
    file = weights_file("b")
    (file.parent / TRAINING).write_text('{"weights": 7}')
    with pytest.raises(UsageError, match=r"training\.json is not what segmint train writes"):
        find(file)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lineage": []}, "its lineage does not end with its weights"),
        ({"datasets": []}, "its datasets are not those of the last round of its lineage"),
    ],
)
def test_a_record_that_contradicts_itself_is_an_error(
    weights_file: Make, changes: dict[str, object], problem: str
) -> None:
    """Else it would read as weights that segmint did not train."""
    file = weights_file("b")
    put_lineage(file, [(ONE, 0.1)])
    record = json.loads((file.parent / TRAINING).read_bytes())
    (file.parent / TRAINING).write_text(json.dumps({**record, **changes}))
    with pytest.raises(UsageError, match=problem):
        find(file)


def test_a_lineage_that_begins_with_weights_of_others_is_not_known(weights_file: Make) -> None:
    file = weights_file("b")
    put_lineage(file, [(ONE, 0.1)], begun=TrainingRound(weights="5" * 64, name="p.pth"))
    lineage = find(file)
    assert (lineage.known, lineage.share, lineage.unexplained) == (False, 0.1, {"5" * 64})
    assert lineage.ancestors == {"5" * 64, lineage.weights.sha256}
    assert "with 10 % held out; what p.pth was trained on before is not known" in lineage.line()
