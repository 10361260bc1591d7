"""Every code has one of the paper's regions and the World Bank's income level."""

from collections import Counter

from segmint.catalogs.licenses import INCOMES, REGIONS, countries

M49 = {
    "Africa": """
        AO BF BI BJ BW CD CF CG CI CM CV DJ DZ EG EH ER ET GA GH GM GN GQ GW IO KE KM LR LS LY MA MG ML
        MR MU MW MZ NA NE NG RE RW SC SD SH SL SN SO SS ST SZ TD TF TG TN TZ UG YT ZA ZM ZW
    """,
    "Asia & Oceania": """
        AE AF AM AS AU AZ BD BH BN BT CC CK CN CX CY FJ FM GE GU HK HM ID IL IN IQ IR JO JP KG KH KI KP
        KR KW KZ LA LB LK MH MM MN MO MP MV MY NC NF NP NR NU NZ OM PF PG PH PK PN PS PW QA SA SB SG SY
        TH TJ TK TL TM TO TR TV TW UM UZ VN VU WF WS YE
    """,
    "Europe": """
        AD AL AT AX BA BE BG BY CH CZ DE DK EE ES FI FO FR GB GG GI GR HR HU IE IM IS IT JE LI LT LU LV
        MC MD ME MK MT NL NO PL PT RO RS RU SE SI SJ SK SM UA VA
    """,
    "Latin America & Caribbean": """
        AG AI AR AW BB BL BO BQ BR BS BV BZ CL CO CR CU CW DM DO EC FK GD GF GP GS GT GY HN HT JM KN KY
        LC MF MQ MS MX NI PA PE PR PY SR SV SX TC TT UY VC VE VG VI
    """,
    "North America": """
        BM CA GL PM US
    """,
}
"""Codes by region, as the United Nations Statistics Division lists them, with the Americas as two."""

LEVELS = {
    "high": """
        AD AE AG AS AT AU AW BB BE BG BH BM BN BS CA CH CL CR CW CY CZ DE DK EE ES FI FO FR GB GG GI GL
        GR GU GY HK HR HU IE IL IM IS IT JE JP KN KR KW KY LI LT LU LV MC MF MO MP MT NC NL NO NR NZ OM
        PA PF PL PR PT PW QA RO RU SA SC SE SG SI SK SM SX TC TT TW US UY VG VI
    """,
    "low": """
        AF BF BI CD CF ER GM GW KP LR MG ML MW MZ NE RW SD SL SO SS SY TD TG UG YE
    """,
    None: """
        AI AQ AX BL BQ BV CC CK CX EH ET FK GF GP GS HM IO MQ MS NF NU PM PN RE SH SJ TF TK UM VA VE WF
        YT
    """,
}
"""Codes by the World Bank's level for fiscal year 2026, and those without one; all others are middle."""


def test_the_table_is_complete() -> None:
    table = countries()
    assert len(table) == 250, "ISO 3166-1 has 249, and XK"
    assert list(table) == sorted(table)
    assert all(len(code) == 2 and code.isascii() and code.isupper() and row.name for code, row in table.items())
    assert {row.region for row in table.values()} == {*REGIONS, None}
    assert [code for code, row in table.items() if row.region is None] == ["AQ"]


def test_regions_are_those_of_the_united_nations() -> None:
    expected = {code: region for region, codes in M49.items() for code in codes.split()}
    assert len(expected) == 248, "no code twice, and all of ISO 3166-1 but Antarctica"
    found = {code: row.region for code, row in countries().items() if code not in ("AQ", "XK")}
    assert found == expected


def test_income_levels_are_the_world_bank_s() -> None:
    levels = {code: level for level, codes in LEVELS.items() for code in codes.split()}
    assert {code: row.income for code, row in countries().items()} == {
        code: levels.get(code, "middle") for code in countries()
    }


def test_income_levels_add_up_to_the_world_banks_counts() -> None:
    found = Counter(row.income for row in countries().values())
    # Fiscal year 2026: 87 economies of high income (Guernsey and Jersey are one), 104 middle, 25 low, 2 unclassified.
    assert {income: found[income] for income in INCOMES} == {"high": 88, "middle": 104, "low": 25}


def test_some_countries() -> None:
    table = countries()
    assert table["KE"][2:] == ("Africa", "middle")
    assert table["JP"][2:] == ("Asia & Oceania", "high")
    assert table["MX"][2:] == ("Latin America & Caribbean", "middle")
    assert table["US"][2:] == ("North America", "high")
    assert table["RU"][2:] == ("Europe", "high")
    assert table["NE"][2:] == ("Africa", "low")
    assert table["CI"].name == "Côte d'Ivoire"
