"""Reasons whose rows can be retried, by their names."""

import pytest

from segmint.catalogs.findings import check_reasons, is_custom_reason
from segmint.infra.errors import UsageError


@pytest.mark.parametrize("name", ["not found", "NOT_FOUND", "", "taken_down"])
@pytest.mark.parametrize("custom", [False, True])
def test_an_unknown_name_is_refused_with_the_list(name: str, custom: bool) -> None:
    with pytest.raises(UsageError, match=r"expected one of license_not_allowed, .*, timed_out") as caught:
        check_reasons(["not_found", name], custom)
    assert repr(name) in str(caught.value)
    assert "taken_down" not in str(caught.value).partition("expected")[2]
    assert str(caught.value).endswith("or a reason of a custom stage") == custom


def test_a_reason_of_a_custom_stage_is_only_known_if_there_is_one() -> None:
    assert is_custom_reason("blurry")
    assert not is_custom_reason("not_found")
    check_reasons(["not_found", "blurry"], custom=True)
    with pytest.raises(UsageError, match="--retry-rejected 'blurry': expected one of"):
        check_reasons(["not_found", "blurry"], custom=False)
