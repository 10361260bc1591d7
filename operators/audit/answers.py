"""Audits what people said of images: their answers, and the rows that say which answer was merged."""

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerError, read_answer
from segmint.catalogs.dataset.annotations.names import ANNOTATIONS, AnswerName, answer_path, image_of, parse_answer_path
from segmint.catalogs.findings import Code, Finding, Place
from segmint.catalogs.layout import image_stem
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.rows import Row

_THREADS = 16


def audit_answers(dataset: Location, rows: Sequence[range], taken: Collection[int]) -> Iterator[Finding]:
    """Findings in `annotations/`: answers that cannot be read, or are of no image, and anything of a `taken` one.

    `rows` are the spans of the dataset's ordinals.
    """
    names = []
    for path in sorted(f"{ANNOTATIONS}/{entry.name}" for entry in (dataset / ANNOTATIONS).walk()):
        ordinal, name = image_of(path), parse_answer_path(path)
        if ordinal is not None and ordinal in taken:
            place = Place(path, image=ordinal + 1)
            expected = "nothing of an image that was taken down"
            yield place.finding(Code.STILL_THERE, expected, "a file", f"id {ordinal + 1}")
        elif name is not None and not any(name.ordinal in span for span in rows):
            yield Place(path).finding(Code.BAD_ANSWER, "an image of the dataset", image_stem(name.ordinal + 1))
        elif name is not None:
            names.append(name)

    def problem(name: AnswerName) -> Finding | None:
        try:
            read_answer(dataset, name)
        except AnswerError as error:
            return _bad(name, "an answer", str(error).removeprefix(f"{dataset}/"))
        return None

    names.sort()
    yield from (found for found in map_ahead(problem, names, _THREADS, 4 * _THREADS, "answers") if found is not None)
    for (_, lane), of_lane in groupby(names, key=lambda name: name[:2]):
        lane_names = list(of_lane)
        missing = sorted(set(range(1, lane_names[-1].n)) - {name.n for name in lane_names})
        if missing:
            expected = f"the answers 1 to {lane_names[-1].n} of lane {lane}"
            yield _bad(lane_names[-1]._replace(n=missing[0]), expected, f"{len(missing)} missing")


def audit_merged_answer(dataset: Location, row: Row, place: Place) -> Iterator[Finding]:
    """Whether the answer that a row of `images/*.parquet` says was merged into it is there, as it was.

    An import that came later leaves the answer's number, and says its own file; then the answer must be there.
    """
    merged = row["answer"] or {}
    if merged.get("lane") is None or merged.get("n") is None:
        return
    name = AnswerName(row["ordinal"], merged["lane"], merged["n"])
    try:
        answer = read_answer(dataset, name)
    except AnswerError as error:
        found = str(error).removeprefix(f"{dataset}/")
        yield place.finding(Code.OTHER_ANSWER, f"the answer {answer_path(*name)}", found, f"id {row['id']}")
        return
    if row["stage"] is not None and _said(row) != _said_by(answer):
        expected = f"what {answer.path} says: {_said_by(answer)}"
        yield place.finding(Code.OTHER_ANSWER, expected, _said(row), f"id {row['id']}")


def _said(row: Row) -> tuple[object, ...]:
    return row["answer"]["sha256"], row["annotator"], row["stage"]


def _said_by(answer: Answer) -> tuple[object, ...]:
    return answer.sha256, answer.annotator, answer.stage


def _bad(name: AnswerName, expected: str, found: str) -> Finding:
    image = name.ordinal + 1
    return Place(answer_path(*name), image=image).finding(Code.BAD_ANSWER, expected, found, f"id {image}")
