"""Every code has a region that the paper has, and the World Bank's level as it counts them."""

from collections import Counter

from catalogs.countries import INCOMES, REGIONS, countries


def test_the_table_is_whole() -> None:
    table = countries()
    assert len(table) == 250, "ISO 3166-1 has 249, and XK"
    assert list(table) == sorted(table)
    assert all(len(code) == 2 and code.isascii() and code.isupper() and row.name for code, row in table.items())
    assert {row.region for row in table.values()} == {*REGIONS, None}
    assert [code for code, row in table.items() if row.region is None] == ["AQ"]


def test_income_levels_are_as_many_as_the_world_bank_counts() -> None:
    found = Counter(row.income for row in countries().values())
    # Fiscal year 2026: 87 economies of high income (Guernsey and Jersey are one), 104 middle, 25 low, 2 unclassified.
    assert {income: found[income] for income in INCOMES} == {"high": 88, "middle": 104, "low": 25}
    assert countries()["ET"].income is None
    assert countries()["VE"].income is None


def test_some_countries() -> None:
    table = countries()
    assert table["KE"][2:] == ("Africa", "middle")
    assert table["JP"][2:] == ("Asia & Oceania", "high")
    assert table["MX"][2:] == ("Latin America & Caribbean", "middle")
    assert table["US"][2:] == ("North America", "high")
    assert table["RU"][2:] == ("Europe", "high")
    assert table["NE"][2:] == ("Africa", "low")
    assert table["CI"].name == "Côte d'Ivoire"
