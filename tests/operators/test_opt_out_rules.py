"""The table of fields and values, in the code and in its page."""

import re
from pathlib import Path

import pytest

from segmint.operators.opt_out import DATA_MINING, RESERVATION, RULES, TRAINING_MINING, OptOut, OptOutVerdict, rule_for
from tests.support.signed_images import VOCABULARY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "opt-outs.md"


def test_the_page_has_the_table_of_the_code() -> None:
    rows = re.findall(r"^\| (`.*`) \| `([^`]+)` \| ([a-z ]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    documented = [(tuple(re.findall(r"`([^`]+)`", fields)), value, verdict) for fields, value, verdict in rows]
    assert documented == [(rule.fields, rule.value, str(rule.verdict)) for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.fields[0]} {rule.value}")
def test_each_value_has_its_rule(rule: object) -> None:
    for field in rule.fields:
        assert rule_for(field, f" {rule.value} ") is rule
        assert rule_for(field, rule.value.lower()) is rule


def test_terms_of_plus_come_as_addresses_and_as_labels() -> None:
    for value in (f"{VOCABULARY}DMI-PROHIBITED", "https://ns.useplus.org/LDF/ldf-vocab/DMI-Prohibited/", "Prohibited"):
        assert rule_for(DATA_MINING, value).value == "DMI-PROHIBITED"
    for value in (
        "http://ns.useplus.org/ldf/vocab#DMI-PROHIBITED",
        "plus:DMI-Prohibited",
        f"{VOCABULARY}DMI-PROHIBITED#",
    ):
        assert rule_for(DATA_MINING, value).value == "DMI-PROHIBITED"
    assert rule_for(DATA_MINING, "plus:DMI-ALLOWED").verdict is OptOutVerdict.ALLOWED
    assert rule_for(DATA_MINING, f"{VOCABULARY}DMI-PROHIBITED?lang=en").verdict is OptOutVerdict.OPTED_OUT
    assert rule_for(DATA_MINING, "Prohibited for AI/ML training").verdict is OptOutVerdict.OPTED_OUT
    assert rule_for(DATA_MINING, f"{VOCABULARY}DMI-PROHIBITED-NEW").value == "DMI-PROHIBITED*"


@pytest.mark.parametrize(
    "value", ["", "DMI-", "7", "https://example.org/terms", "allowed, not prohibited", "2", "true"]
)
def test_other_values_say_nothing(value: str) -> None:
    assert rule_for(DATA_MINING, value) is None
    assert rule_for(RESERVATION, value) is None
    assert rule_for(TRAINING_MINING[0], value) is None


@pytest.mark.parametrize("prefix", ["c2pa:", "https://cawg.io/training-mining/", "https://cawg.io/training-mining#"])
def test_terms_of_the_other_vocabularies_may_have_a_prefix(prefix: str) -> None:
    assert rule_for(TRAINING_MINING[0], f"{prefix}notAllowed").verdict is OptOutVerdict.OPTED_OUT
    assert rule_for(RESERVATION, f"{prefix}1").verdict is OptOutVerdict.OPTED_OUT


def test_entries_that_no_vocabulary_has_say_nothing() -> None:
    assert rule_for("org.example.ai_training", "notAllowed") is None


def test_the_sentence_quotes_the_vocabulary_alone() -> None:
    rule = rule_for(DATA_MINING, f"{VOCABULARY}DMI-PROHIBITED-by Zoë")
    assert OptOut(DATA_MINING, rule.value).detail == (
        "the image's metadata forbids training with it: plus:DataMining is DMI-PROHIBITED*"
    )
