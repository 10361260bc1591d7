"""Reasons parsed from the names on a command line."""

import pytest

from segmint.catalogs.reasons import Reason, reasons_to_retry
from segmint.infra.errors import UsageError


def test_reasons_are_parsed_by_name() -> None:
    assert reasons_to_retry([]) == frozenset()
    assert reasons_to_retry(["not_found", "timed_out", "not_found"]) == {Reason.NOT_FOUND, Reason.TIMED_OUT}


@pytest.mark.parametrize("name", ["not found", "NOT_FOUND", "", "taken_down"])
def test_an_unknown_name_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected one of license_not_allowed, .*, timed_out") as caught:
        reasons_to_retry(["not_found", name])
    assert repr(name) in str(caught.value)
    assert "taken_down" not in str(caught.value).partition("expected")[2]
