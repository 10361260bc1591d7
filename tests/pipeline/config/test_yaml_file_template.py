"""The configuration to begin with is one, and its comments show the defaults."""

import re

from segmint.pipeline.config.config import Config
from segmint.pipeline.config.yaml_file import check, parse_yaml, template


def loaded(text: str) -> Config:
    return check(parse_yaml(text, "build.yaml"), Config)


def test_it_is_a_configuration_with_what_was_given() -> None:
    config = loaded(template("true", "s3://a b/c: #d.parquet", "/out {x}", ("CC0-1.0", "LicenseRef-acme")))
    assert (config.name, config.catalog, config.output) == ("true", "s3://a b/c: #d.parquet", "/out {x}")
    assert config.license.allow == ("CC0-1.0", "LicenseRef-acme")


def test_every_key_in_a_comment_shows_its_default() -> None:
    text = template("my-dataset", "catalog.parquet", "dataset", ["CC0-1.0"])
    uncommented, keys = re.subn(r"^#(?=[a-z ]{2}[a-z_ ]*:)", "", text, flags=re.MULTILINE)
    assert keys == len(re.findall(r"^#\S|^#  ", text, flags=re.MULTILINE)) == 29
    assert loaded(uncommented) == loaded(text)
