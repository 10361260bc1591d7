"""Places in captions: a trial on captions as people write them, and the rule's single cases."""

import pytest

from segmint.catalogs.places import country_in, place_names
from tests.catalogs.captions import CAPTIONS, LATER


def tried(captions: dict[str, str | None]) -> tuple[int, int, list[str]]:
    """How many captions say their country, how many of these were found, and what was found wrongly."""
    answers = {caption: country_in(caption) for caption in captions}
    found = [caption for caption, country in answers.items() if country is not None]
    right = [caption for caption in found if answers[caption] == captions[caption]]
    return sum(country is not None for country in captions.values()), len(right), sorted({*found} - {*right})


def test_the_trial_is_as_the_documentation_says() -> None:
    """Nothing is found wrongly; docs/catalogs.md has these numbers."""
    assert (len(CAPTIONS), tried(CAPTIONS)) == (90, (49, 44, []))
    assert (len(LATER), tried(LATER)) == (62, (38, 36, []))


@pytest.mark.parametrize(
    ("caption", "country"),
    [
        ("In Bath, England", "GB"),
        ("A café in Portland, OR", "US"),
        ("Choose tea, OR coffee", None),
        ("IN A BAR IN BERLIN", "DE"),
        ("A tower in Köln", "DE"),
        ("A tower in Cologne", "DE"),
        ("In Port-au-Prince", "HT"),
        ("In Xi’an", "CN"),
        ("A market in Abidjan, Côte d'Ivoire", "CI"),
        ("Near Spain and Portugal", None),
        ("Tokyo's streets", None),
        ("Fans in Brazil shirts", None),
        ("A boy in Boston baseball cap", None),
        ("She smiles at Sofia", None),
        ("A dog looks at Jordan", None),
        ("A child in Turkey costume", None),
        ("Ruins in Jordan at dusk", "JO"),
        ("Soldiers in the U.S.", "US"),
        ("in Paris, " * 50_000, "FR"),
    ],
)
def test_single_cases(caption: str, country: str | None) -> None:
    assert country_in(caption) == country


def test_a_name_of_several_large_cities_says_no_country_alone() -> None:
    names = place_names()
    assert {"barcelona", "valencia", "hyderabad", "orange", "nice", "reading", "of", "van"}.isdisjoint(names.certain)
    assert (names.certain["london"], names.certain["bern"]) == ("GB", "CH")
    assert {country for country, _ in names.cities["paris"]} == {"FR", "US"}
