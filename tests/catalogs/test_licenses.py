"""License identifiers and the license policy."""

import time
from dataclasses import replace
from datetime import date

import pytest

from segmint.catalogs.findings import Reason
from segmint.catalogs.licenses import (
    LicensePolicy,
    canonical_identifier,
    spdx_identifiers,
    suggest_identifier,
    validate_identifier,
)
from segmint.infra.errors import UsageError

DAY = date(2026, 6, 1)
POLICY = LicensePolicy(frozenset({"CC-BY-4.0", "LicenseRef-acme-2026"}), False, DAY)
STRICT = LicensePolicy(POLICY.allow, True, DAY)


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("CC0-1.0", "CC0-1.0"),
        ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
        ("LicenseRef-acme-2026", "LicenseRef-acme-2026"),
        ("CC-BY", None),
        ("LicenseRef-", None),
        ("LicenseRef-a b", None),
        ("CC-BY-4.0 OR MIT", None),
        ("Classpath-exception-2.0", None),
        ("", None),
    ],
)
def test_what_is_an_identifier(text: str, identifier: str | None) -> None:
    assert canonical_identifier(text) == identifier


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("CC-BY", "CC-BY-4.0"),
        ("cc by 4.0", "CC-BY-4.0"),
        ("CC-BY-4", "CC-BY-4.0"),
        ("CC0", "CC0-1.0"),
        ("CC-BY-NC-4,0", "CC-BY-NC-4.0"),
        ("Appache-2.0", "Apache-2.0"),
        ("OGL 3.0", None),  # not OSL-3.0
        ("BSD-3", None),  # not BSD-2
        ("BSD", None),
        ("CC-NC-SA-1.0", None),  # without attribution
        ("all rights reserved, do not touch", None),
    ],
)
def test_a_near_miss_gets_a_suggestion(text: str, suggestion: str | None) -> None:
    assert suggest_identifier(text) == suggestion


@pytest.mark.parametrize(
    ("url", "suggestion"),
    [
        ("https://creativecommons.org/licenses/by/2.0/", "CC-BY-2.0"),
        ("http://www.creativecommons.org/licenses/by-nc-sa/4.0", "CC-BY-NC-SA-4.0"),
        ("HTTP://CreativeCommons.org/licenses/by-nd-nc/1.0/", "CC-BY-NC-ND-1.0"),
        ("//creativecommons.org/licenses/by-sa/3.0/de/deed.en", "CC-BY-SA-3.0-DE"),
        ("creativecommons.org/licenses/by/4.0/legalcode.zh-Hans", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/deed.pt_BR?ref=chooser-v1", "CC-BY-4.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/legalcode", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/deed.de", "CC-PDM-1.0"),
        ("https://spdx.org/licenses/ODbL-1.0.html", "ODbL-1.0"),
        ("https://creativecommons.org/licenses/by/3.0/se/", None),  # SPDX has no identifier for this port
        ("https://creativecommons.org/licenses/by/9.0/", None),
        ("https://creativecommons.org/licenses/", None),
        ("https://example.org/creativecommons.org/licenses/by/2.0/", None),
        ("https://creativecommons.org.example/licenses/by/2.0/", None),
        ("http://opendatacommons.org/licenses/by/1-0/", None),
        ("http://rightsstatements.org/vocab/InC/1.0/", None),
        ("https://unsplash.com/license", None),
    ],
)
def test_a_url_gets_the_identifier_of_its_license(url: str, suggestion: str | None) -> None:
    assert suggest_identifier(url) == suggestion
    assert canonical_identifier(url) is None


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("CC BY 2.0", "CC-BY-2.0"),
        ("CC BY-SA 4.0", "CC-BY-SA-4.0"),
        ("CC_BY_NC_4_0", "CC-BY-NC-4.0"),
        ("CC BY-SA 3.0 de", "CC-BY-SA-3.0-DE"),
        ("CC BY 3.0 Unported", "CC-BY-3.0"),
        ("by-nc-sa", "CC-BY-NC-SA-4.0"),
        ("Creative Commons Attribution-ShareAlike 4.0 International License", "CC-BY-SA-4.0"),
        ("Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)", "CC-BY-NC-4.0"),
        ("Attribution License", "CC-BY-2.0"),  # Flickr's
        ("Attribution-NonCommercial-NoDerivs License", "CC-BY-NC-ND-2.0"),
        ("Public Domain Dedication (CC0)", "CC0-1.0"),
        ("CC0 1.0 Universal (CC0 1.0) Public Domain Dedication", "CC0-1.0"),
        ("Creative Commons Zero", "CC0-1.0"),
        ("CC0_1_0", "CC0-1.0"),
        ("public domain mark 1.0", "CC-PDM-1.0"),
        ("pdm", "CC-PDM-1.0"),
        ("MIT License", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("ODC By 1.0", "ODC-By-1.0"),
        ("GPL 3.0+ License", "GPL-3.0+"),
        # These don't mean one license of SPDX's list.
        ("CC BY 3.0 se", None),
        ("CC-BY-SA-3.0,2.5,2.0,1.0", None),
        ("CC BY-NC 4.0 / CC BY-SA 4.0", None),
        ("CC BY-SA 4.0 or GFDL", None),
        ("not CC BY 4.0", None),
        ("CC BY-NC-XX 4.0", None),
        ("CC0 2.0", None),
        ("Attribution", None),
        ("public domain", None),
        ("No known copyright restrictions", None),
        ("United States Government Work", None),
        ("Unsplash License", None),
        ("fair use", None),
        ("unlicensed", None),
        ("no license", None),
        ("free", None),
        ("none", None),
        ("NC", None),
        ("CC-BY-NC-ND-SA-4.0", None),
        ("CC BY 2.0, CC BY-NC 2.0", None),
    ],
)
def test_a_name_as_collections_write_it_gets_its_identifier_or_nothing(name: str, suggestion: str | None) -> None:
    assert suggest_identifier(name) == suggestion
    assert canonical_identifier(name) is None


def test_every_identifier_of_creative_commons_is_found_by_its_name() -> None:
    for identifier in spdx_identifiers().values():
        if identifier.startswith("CC-BY"):
            assert suggest_identifier(identifier.replace("-", " ")) == identifier
            assert suggest_identifier(identifier.replace("-", "_").replace(".", "_") + " ") == identifier


def test_a_long_text_is_looked_at_in_no_time_and_not_repeated() -> None:
    """Each of these took minutes, or its detail would have been as long."""
    began = time.process_time()
    for text in ("a" * 200_000, "CC-BY " * 50_000, "-" * 300_000, "LicenseRef-" + "a" * 300_000):
        verdict = POLICY.judge(text, None, None)
        assert verdict is not None
        assert verdict[0] is Reason.LICENSE_NOT_ALLOWED
        assert len(verdict[1]) < 250
    for index in range(2000):
        suggest_identifier(f"{index} " + "CC-BY 4.0 " * 90)
    assert time.process_time() - began < 5


def test_every_identifier_is_suggested_for_its_words_and_no_other() -> None:
    for identifier in spdx_identifiers().values():
        if " " not in identifier:  # the list contains "GPL-2.0" and "GPL 2.0"
            for text in (
                f"The {identifier} License",
                f'"{identifier}"',
                f"https://spdx.org/licenses/{identifier}.html",
            ):
                assert suggest_identifier(text) == identifier


def test_a_verdict_repeats_no_credential() -> None:
    verdict = POLICY.judge("see https://user:hunter2@host/terms?token=hunter2", None, None)
    assert verdict is not None
    assert "hunter2" not in verdict[1]


def test_an_unknown_identifier_in_a_configuration_is_refused_with_a_suggestion() -> None:
    assert validate_identifier("cc-by-4.0") == "CC-BY-4.0"
    with pytest.raises(UsageError, match=r"'CC-BY' is not a license identifier \(did you mean CC-BY-4\.0\?\)"):
        validate_identifier("CC-BY")


@pytest.mark.parametrize(
    ("policy", "license", "redistributable", "valid_until", "reason"),
    [
        (POLICY, "CC-BY-4.0", None, None, None),
        (POLICY, "cc-by-4.0 ", None, None, None),
        (POLICY, "LicenseRef-acme-2026", False, None, None),
        (POLICY, "CC-BY-4.0", None, DAY, None),
        (STRICT, "CC-BY-4.0", True, None, None),
        (POLICY, None, True, None, Reason.LICENSE_MISSING),
        (POLICY, " ", True, None, Reason.LICENSE_MISSING),
        (POLICY, "CC0-1.0", True, None, Reason.LICENSE_NOT_ALLOWED),
        (POLICY, "LicenseRef-acme-2025", True, None, Reason.LICENSE_NOT_ALLOWED),
        (POLICY, "licenseref-ACME-2026", True, None, Reason.LICENSE_NOT_ALLOWED),
        (POLICY, "all rights reserved", True, None, Reason.LICENSE_NOT_ALLOWED),
        (POLICY, "CC-BY-4.0", True, date(2026, 5, 31), Reason.LICENSE_EXPIRED),
        (STRICT, "CC-BY-4.0", None, None, Reason.NOT_REDISTRIBUTABLE),
        (STRICT, "CC-BY-4.0", False, None, Reason.NOT_REDISTRIBUTABLE),
        # Of several problems the first one counts.
        (STRICT, None, False, date(2000, 1, 1), Reason.LICENSE_MISSING),
        (STRICT, "MIT", False, date(2000, 1, 1), Reason.LICENSE_NOT_ALLOWED),
        (STRICT, "CC-BY-4.0", False, date(2000, 1, 1), Reason.LICENSE_EXPIRED),
    ],
)
def test_verdicts(
    policy: LicensePolicy,
    license: str | None,
    redistributable: bool | None,
    valid_until: date | None,
    reason: Reason | None,
) -> None:
    verdict = policy.judge(license, redistributable, valid_until)
    assert (verdict[0] if verdict else None) == reason


def test_an_opt_out_counts_unless_the_policy_says_otherwise() -> None:
    verdict = POLICY.judge("CC-BY-4.0", None, None, opt_out=True)
    assert verdict is not None
    assert verdict[0] is Reason.OPTED_OUT
    for opt_out in (None, False):
        assert POLICY.judge("CC-BY-4.0", None, None, opt_out) is None
    assert replace(POLICY, respect_opt_out=False).judge("CC-BY-4.0", None, None, opt_out=True) is None


def test_a_verdict_says_what_was_found_and_expected() -> None:
    verdict = POLICY.judge("CC0-1.0", None, None)
    assert verdict is not None
    assert "CC0-1.0" in verdict[1]
    assert "CC-BY-4.0, LicenseRef-acme-2026" in verdict[1]
    expired = POLICY.judge("CC-BY-4.0", None, date(2026, 5, 31))
    assert expired is not None
    assert "2026-05-31" in expired[1]
    assert "2026-06-01" in expired[1]
