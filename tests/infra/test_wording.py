"""Numbers as people read them; what is not known is never a zero."""

import io
import json

import pytest
import yaml

from segmint.infra.wording import (
    count,
    counted,
    duration,
    fit,
    json_text,
    listed,
    number,
    plural,
    share,
    size,
    some,
    upper_bound,
    without_turning,
    yaml_text,
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (count(1234567), "1,234,567"),
        (count(0), "0"),
        (count(None), "unknown"),
        (counted(1, "mask"), "1 mask"),
        (counted(2000, "mask"), "2,000 masks"),
        (counted(None, "mask"), "an unknown number of masks"),
        (plural(1, "mask"), "mask"),
        (plural(0, "mask"), "masks"),
        (share(0.0283), "2.83%"),
        (share(39_999 / 40_000), "99.9%"),
        (share(1), "100%"),
        (share(sum([0.1] * 10)), "100%"),
        (share(None), "unknown"),
        (number(12.345), "12.3"),
        (number(None), "unknown"),
        (size(999), "999 bytes"),
        (number(0.25), "0.25"),
        (number(1234.5), "1,234"),
        (number(999.7), "1,000"),
        (number(0), "0"),
        (size(1_234_567), "1.23 MB"),
        (size(999_900), "1 MB"),
        (size(5 * 10**17), "500 PB"),
        (size(None), "unknown"),
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (listed([]), ""),
        (some(["a", "b"]), "a, b"),
        (some(["a", "b", "c", "d"], shown=2), "a, b, and 2 more"),
    ],
)
def test_words(said: str, expected: str) -> None:
    assert said == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (12.345, "12.3"), (100.0, "100"), (1234.5, "1,234"), (1e-5, "1e-05")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown"), (0, "0 s"), (89, "89 s"), (90, "1.5 min"), (5400, "1.5 h"), (130_000, "1.5 days")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (7.6, "8 s"), (18, "20 s"), (86, "85 s"), (100, "2 min"), (780, "15 min"), (7200, "2 h")],
)
def test_rough_durations(seconds: float, text: str) -> None:
    assert duration(seconds, rough=True) == text


@pytest.mark.parametrize("mark", "\u061c\u200e\u200f\u202a\u202e\u2066\u2069")
def test_no_mark_turns_the_text_of_a_name(mark: str) -> None:
    assert without_turning(f"caf\u00e9{mark}gpj") == "caf\u00e9\ufffdgpj"
    assert yaml_text({"name": f"caf\u00e9{mark}gpj"}) == f'name: "caf\\xE9\\u{ord(mark):04X}gpj"\n'
    assert yaml_text({"name": "caf\u00e9"}) == "name: caf\u00e9\n"
    assert yaml.safe_load(yaml_text({"name": "a\x85b"})) == {"name": "a\x85b"}


def test_a_bound_is_rounded_up() -> None:
    assert [upper_bound(each) for each in (0.000998, 0.0010014, 0.0453, 0.527, 1.0, 0.0)] == [
        "0.1%",
        "0.11%",
        "4.6%",
        "53%",
        "100%",
        "0%",
    ]


def test_names_that_are_not_utf_8_give_json_that_every_reader_accepts() -> None:
    text = json_text({"a\udcff.jpg": "a\udcff\u20ac"})
    assert text.encode()
    assert "\\\\udcff" in text
    assert json.loads(text) == {"a\\udcff.jpg": "a\\udcff\u20ac"}


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_long_lines_are_broken_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    sentence = "not checked: " + "word " * 40
    text = f"short\n  {sentence}\n{'x' * 100} and {'y' * 100}\n\n  name      1,234"
    assert fit(text, io.StringIO()) == text
    lines = fit(text, Terminal()).split("\n")
    assert (lines[0], lines[-2:]) == ("short", ["", "  name      1,234"])
    assert lines[1].startswith("  not checked: word")
    assert lines[2].startswith("    word")
    assert [line for line in lines if len(line) > 80] == ["x" * 100, f"  {'y' * 100}"]
    assert "".join(fit(sentence, Terminal()).split()) == "".join(sentence.split())

    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, fit(sentence, Terminal()).split("\n"))) <= 40
    colored = "\x1b[32m" + "green " * 6 + "\x1b[0m"
    assert fit(colored, Terminal()) == colored


def test_wide_characters_take_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert {len(line) for line in fit(" ".join(["\u5199\u771f"] * 31), Terminal()).split("\n")} == {46, 47}
