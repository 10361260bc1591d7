"""What an address asks for, and what is refused."""

import pytest

from segmint.infra.errors import UsageError
from segmint.pipeline.quality.view.queries import Filters, order, parse_filters, where


def test_an_address_says_what_is_shown() -> None:
    asked = {
        "text": "paris",
        "country": "FR",
        "unknown": "license,provider",
        "masks_min": "3",
        "predicted_iou_max": "0.9",
        "finding": "mask_area",
        "sort": "coverage",
        "descending": "1",
        "stability_min": "",
    }
    assert parse_filters(asked) == Filters(
        text="paris",
        choices={"country": "FR", "license": None, "provider": None},
        least={"masks": 3.0},
        greatest={"predicted_iou": 0.9},
        finding="mask_area",
        sort="coverage",
        descending=True,
    )
    assert parse_filters({}) == Filters()


@pytest.mark.parametrize(
    "asked",
    [
        {"masks_min": "many"},
        {"masks_max": "nan"},
        {"coverage_min": "inf"},
        {"masks_between": "3"},
        {"sort": "id; DROP TABLE images"},
        {"unknown": "country,shard"},
        {"shard_min": "3"},
        {"limit": "1000000"},
    ],
)
def test_anything_else_is_refused(asked: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        parse_filters(asked)


def test_texts_are_parameters_and_never_sql() -> None:
    attack = "' OR 1=1 --"
    condition, values = where(parse_filters({"text": attack, "country": attack, "finding": attack}), {})
    assert attack not in condition
    assert values == [attack, -1, attack, []]
    assert condition.count("?") == len(values)


def test_an_order_and_its_reverse() -> None:
    falling = Filters(sort="masks", descending=True)
    assert order(falling) == "masks DESC NULLS LAST, id ASC"
    assert order(falling, backward=True) == "masks ASC NULLS FIRST, id DESC"
    assert order(Filters(), backward=True) == "id DESC"
