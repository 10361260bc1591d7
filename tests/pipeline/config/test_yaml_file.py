"""Problems of a configuration: each is told with its key, its place and what was expected, all at once."""

import time
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.pipeline.config.config import load_config
from segmint.pipeline.config.yaml_file import contradictions, parse_yaml

GOOD = """\
name: street
catalog: catalog.csv
output: out
license: {allow: [CC0-1.0]}
"""


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """What is told about a configuration, line by line, the heading first; paths shortened to `c.yaml`."""
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_config(str(path), list(overrides))
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_only_keys_with_two_values_contradict_each_other() -> None:
    document = parse_yaml(f"{GOOD}masks: {{points_per_side: 8, crop_n_layers: 0}}\n", "c.yaml")
    same = ["masks.points_per_side=8", "masks={crop_n_layers: 0}", "model.device=cpu", "license.allow=[CC0-1.0]"]
    assert list(contradictions(document, same)) == []
    assert list(contradictions(document, ["masks={points_per_side: 4}", "name=road"])) == [
        "masks.points_per_side is 8 and 4",
        "name is 'street' and 'road'",
    ]


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path):
    heading, *rest = problems(
        tmp_path,
        GOOD
        + """\
masks:
  points_per_sid: 16
  pred_iou_thresh: high
relase: {}
images_per_shard: 0
""",
        "model.device=tpu",
    )
    assert heading == "c.yaml has 5 problems:"
    assert [line.split(" ")[2:4] for line in rest] == [
        ["c.yaml:6:", "masks.points_per_sid"],
        ["c.yaml:7:", "masks.pred_iou_thresh"],
        ["c.yaml:8:", "relase"],
        ["c.yaml:9:", "images_per_shard"],
        ["--set", "model.device:"],
    ]
    assert "did you mean points_per_side?" in rest[0]
    assert "is 'high': expected a number" in rest[1]
    assert "did you mean release?" in rest[2]
    assert "is 0: expected at least 1" in rest[3]
    assert "is 'tpu': expected 'auto', 'cpu' or 'cuda'" in rest[4]


def test_an_unknown_key_without_a_likeness_comes_with_the_known_ones(tmp_path):
    (_, line) = problems(tmp_path, GOOD + "release: {zzz: 1}\n")
    assert line == "  c.yaml:5: release.zzz is not a configuration key: " + (
        "expected one of format, jpeg_quality, short_side"
    )


def test_only_the_first_of_many_problems_are_explained(tmp_path):
    """Looking for a likeness among the known keys takes a millisecond for each."""
    start = time.process_time()
    heading, *rest = problems(tmp_path, GOOD + "".join(f"key_{number}: 1\n" for number in range(3_000)))
    assert time.process_time() - start < 2.5
    assert heading == "c.yaml has 3,000 problems:"
    assert "key_99 is not a configuration key: expected one of " in rest[99]
    assert rest[100:] == ["  and 2,900 more"]


def test_missing_keys_say_what_they_are(tmp_path):
    heading, *rest = problems(tmp_path, "license: {}\n")
    assert heading == "c.yaml has 4 problems:"
    told = "\n".join(rest)
    for key in ("name", "catalog", "output"):
        assert f"c.yaml: {key} is missing: expected" in told
    assert "c.yaml:1: license.allow is missing: expected a list of SPDX identifiers" in told


def test_true_is_no_number(tmp_path):
    (_, line) = problems(tmp_path, GOOD + "masks: {points_per_side: yes}\n")
    assert line == "  c.yaml:5: masks.points_per_side is true: expected a number"
    lists = "stages: [{stage: a.B, after: prepare, resources: {num_cpus: yes}}]\ncurate: {scorers: [{min: yes}]}\n"
    found = problems(tmp_path, GOOD + lists)
    assert "  c.yaml:5: stages[0].resources.num_cpus is true: expected a number" in found
    assert "  c.yaml:6: curate.scorers[0].min is true: expected a number" in found


def test_a_number_is_no_date(tmp_path):
    (_, line) = problems(tmp_path, GOOD.replace("allow: [", "policy_date: 0, allow: ["))
    assert line.endswith(": license.policy_date is 0: expected a date, such as 2026-03-31")


def test_values_that_do_not_fit_together_are_told_at_their_part(tmp_path):
    (_, line) = problems(tmp_path, GOOD + "masks:\n  points_per_side: 2\n  crop_n_layers: 3\n")
    assert line.startswith("  c.yaml:5: masks ")
    assert "expected at least 8" in line


@pytest.mark.parametrize("key", ["1", "null", "2026-01-01", "[1, 2]"])
def test_a_key_that_is_no_text_is_refused(tmp_path, key):
    told = problems(tmp_path, GOOD + f"{key}: 3\n")
    assert "c.yaml:5" in "\n".join(told)


def test_a_part_that_is_no_mapping(tmp_path):
    (_, line) = problems(tmp_path, GOOD + "masks: 3\n")
    assert line.startswith("  c.yaml:5: masks is 3: expected")


def test_credentials_are_told_with_their_line_and_without_their_value(tmp_path):
    lines = problems(
        tmp_path,
        GOOD + "storage:\n  s3://licensed:\n    profile: vendor\n    secret: hunter2\n",
        "storage.s3://other.token=hunter3",
        "output=s3://me:hunter4@bucket/x",
    )
    told = "\n".join(lines)
    assert "c.yaml:8: storage.s3://licensed.secret is invalid" in told
    assert "--set storage.s3://other.token: storage.s3://other.token is invalid" in told
    assert "hunter" not in told
    assert lines[0] == "c.yaml has 3 problems:"


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (_, line) = problems(tmp_path, GOOD + "name: other\n")
    assert line == "  c.yaml:5: name is given twice, first on line 1"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [1\ncatalog: 2\n", "c.yaml:2:"),
        ("name: a\n\tcatalog: b\n", "c.yaml:2:1: invalid YAML"),
        ("- a\n- b\n", "c.yaml:1: expected keys and values"),
        ("just text\n", "c.yaml:1: expected keys and values"),
        ("name: !!python/object/apply:os.getcwd []\n", "c.yaml:1:"),
        ("a: 1\n---\nb: 2\n", "invalid YAML"),
    ],
)
def test_what_is_no_configuration_is_told_with_its_place(tmp_path, text, told):
    assert told in "\n".join(problems(tmp_path, text))


def test_an_empty_file_misses_everything(tmp_path):
    assert problems(tmp_path, "")[0] == "c.yaml has 4 problems:"


def test_yaml_that_holds_itself_ends_in_a_message(tmp_path):
    assert "c.yaml" in "\n".join(problems(tmp_path, GOOD + "masks: &m {profile: *m}\n"))
    assert "c.yaml" in "\n".join(problems(tmp_path, GOOD + "storage: &m {s3://a: *m}\n"))


def test_anchors_and_merges_work(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(GOOD + "masks: &m {points_per_side: 8, crop_n_layers: 0}\nresources: {prepare: &p {actors: 2}}\n")
    assert load_config(str(path)).masks.points_per_side == 8


@pytest.mark.parametrize("override", ["masks.points_per_side", "=3", ".a=3", "a..b=3", "masks.points_per_side=[1"])
def test_an_override_of_another_form_is_refused(tmp_path, override):
    assert "--set" in problems(tmp_path, GOOD, override)[0]


def test_an_override_below_a_plain_value_is_refused(tmp_path):
    assert problems(tmp_path, GOOD, "name.first=3") == ["--set name.first: name is 'street', which can't contain keys"]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load_config(str(tmp_path / "absent.yaml"))
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        load_config(str(tmp_path / "binary.yaml"))


def test_what_has_no_end_is_not_read(tmp_path):
    for device in ("/dev/zero", "file:///dev/zero"):
        with pytest.raises(UsageError, match="cannot be read"):
            load_config(device)
    (tmp_path / "large.yaml").write_bytes(b"#" * 1_000_001)
    for large in (tmp_path / "large.yaml", f"file://{tmp_path}/large.yaml"):
        with pytest.raises(
            UsageError, match=r"large\.yaml is larger than 1,000,000 bytes; expected a YAML configuration"
        ):
            load_config(str(large))


def test_a_configuration_is_read_by_uri(tmp_path):
    (tmp_path / "c.yaml").write_text(GOOD)
    assert load_config(f"file://{tmp_path}/c.yaml").name == "street"
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(f"file://{tmp_path}/absent.yaml")


LAUGHS = {
    "mappings": "a0: &a0 {k: v}\n" + "".join(
        f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 12)
    ),
    "lists": "a0: &a0 [lol]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    ) + "images_per_shard: *a11\n",
    "merges": "a0: &a0 {k: v}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: v}}\n" for i in range(1, 12)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAUGHS)
def test_a_billion_laughs_are_not_unfolded(tmp_path, kind):
    (line,) = problems(tmp_path, GOOD + LAUGHS[kind])
    assert "c.yaml has more than 100,000 values" in line


def test_deep_nesting_ends_in_a_message(tmp_path):
    assert "invalid YAML" in problems(tmp_path, "[" * 2_000)[0]
    assert "--set name" in problems(tmp_path, GOOD, "name=" + "[" * 2_000)[0]


@pytest.mark.parametrize("value", ["!!python/object/apply:os.getcwd []", "2026-13-45", "!!binary x"])
def test_an_override_is_plain_yaml(tmp_path, value):
    assert "--set name" in problems(tmp_path, GOOD, f"name={value}")[0]


@pytest.mark.parametrize(
    "key",
    ["model.weights", "deidentify.faces.detector", "deidentify.plates.detector", "catalog", "output", "assets"],
)
@pytest.mark.parametrize(
    "uri",
    [
        "https://me:hunter2@host/own.pt#sha256=" + "0" * 64,
        "https://b.s3.amazonaws.com/own.pt?X-Amz-Signature=hunter2#sha256=" + "0" * 64,
        "https://host/own.pt?token=hunter2",
        "s3://AKIAIOSFODNN7EXAMPLE:hunter2/hunter3@bucket/own.pt",
        "ftp://me:hunter2@host/own.exe",
    ],
)
def test_no_key_takes_a_uri_with_a_credential_or_repeats_it(tmp_path, key, uri):
    told = "\n".join(problems(tmp_path, GOOD, f"{key}={uri}"))
    assert f"--set {key}: {key} is " in told
    assert "hunter" not in told
    assert "AKIA" not in told


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("images_per_shard", "0500", "starts with 0, and YAML reads 0500 as 320"),
        ("stall_timeout", "1:30", "contains a colon, and YAML reads 1:30 as 90"),
        ("masks.pred_iou_thresh", "1:30.5", "contains a colon"),
    ],
)
def test_numbers_that_yaml_takes_for_others_are_refused(tmp_path, key, value, told):
    part, dot, rest = key.partition(".")
    written = f"{part}: {{{rest}: {value}}}" if dot else f"{key}: {value}"
    (_, line) = problems(tmp_path, f"{GOOD}{written}\n")
    assert line.startswith(f"  c.yaml:5: {key} {told}")
    assert told in problems(tmp_path, GOOD, f"{key}={value}")[0]
    assert "expected a whole number" in problems(tmp_path, GOOD, "images_per_shard='1:30'")[1]


@pytest.mark.parametrize("number", ["-1.0e9", "1e3", ".5E2", "+1.e10"])
def test_a_number_that_yaml_takes_for_text_is_refused_as_an_argument(tmp_path, number):
    for part in (
        f"segmenter: {{stage: a.b, arguments: {{x: [{number}]}}}}",
        f"stages: [{{arguments: {{x: [{number}]}}}}]",
    ):
        (_, line) = problems(tmp_path, f"{GOOD}{part}\n")
        assert f"arguments.x[0] is {number}, which YAML reads as text: write the number with a point" in line
    (told,) = problems(tmp_path, GOOD, f"segmenter.arguments.x={number}")
    assert "which YAML reads as text" in told
    read = parse_yaml(f"stages: [{{arguments: {{x: '{number}', y: 1.0e+3, z: {number}m}}}}]", "c.yaml").data["stages"]
    assert read == [{"arguments": {"x": number, "y": 1000.0, "z": f"{number}m"}}]
    assert parse_yaml(f"a: {number}", "c.yaml").data == {"a": number}, "pydantic reads the keys of segmint as numbers"


def test_a_key_of_another_part_is_told_where_it_belongs(tmp_path):
    (_, line) = problems(tmp_path, GOOD + "points_per_side: 16\ndeidentify: {}\n")
    assert line.endswith("points_per_side is not a configuration key: points_per_side belongs under masks:")


def test_what_is_empty_is_told_in_plain_words(tmp_path):
    (_, catalog, allow) = problems(tmp_path, "name: a\ncatalog: ''\noutput: o\nlicense: {allow: []}\n")
    assert catalog.endswith("catalog is '': expected non-empty text")
    assert allow.endswith("license.allow is []: expected a non-empty list")
    (_, item) = problems(tmp_path, GOOD, "license.allow=[2026-01-01]")
    assert item.endswith("license.allow[0] is 2026-01-01: expected text, in quotes")


POOLS = GOOD + "resources:\n  prepare: &pool {actors: 2, num_cpus: 3}\n  segment: *pool\n"


def test_an_override_changes_one_key_even_if_an_alias_shares_its_value(tmp_path):
    (tmp_path / "c.yaml").write_text(POOLS)
    loaded = load_config(str(tmp_path / "c.yaml"), ["resources.segment.num_cpus=1", "resources.segment.actors=4"])
    assert (loaded.resources.prepare.num_cpus, loaded.resources.prepare.actors) == (3, 2)
    assert (loaded.resources.segment.num_cpus, loaded.resources.segment.actors) == (1, 4)


def test_a_wrong_value_that_an_alias_repeats_is_a_problem(tmp_path):
    _, line = problems(tmp_path, POOLS.replace("num_cpus: 3", "num_cpus: yes"))
    assert line == "  c.yaml:6: resources.prepare.num_cpus is true: expected a number"
