"""The table of the long tests' results: a result holds until something changes that decides about it."""

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "long_tests.py"
FILES = {
    "infra/uris.py": "import os\n",
    "infra/log.py": "def log():\n    from segmint.infra import uris\n",
    "model/sam.py": "x = 1\n",
    "pipeline/commands/cli.py": "",
    "tests/conftest.py": "import pytest\n",
    "tests/support/tools.py": "from segmint.infra.log import log\n",
    "tests/infra/test_log.py": "from tests.support import tools\n\n@pytest.mark.long\ndef test_it(): ...\n",
    "tests/test_commands.py": '@pytest.mark.long\ndef test_it(): run([sys.executable, "-m", "segmint"])\n',
    "tests/test_short.py": "def test_it(): ...\n",
}
LOG, COMMANDS = "tests/infra/test_log.py", "tests/test_commands.py"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def digests(tree: Path) -> dict[str, str]:
    """The digest of each piece, by a new copy of the script, because it keeps what it has read."""
    script = runpy.run_path(str(SCRIPT))
    return {piece: script["digest"](piece, tree) for piece in script["pieces"](tree)}


@pytest.mark.parametrize(
    ("changed", "outdated"),
    [
        ("infra/uris.py", {LOG, COMMANDS}),
        ("model/sam.py", {COMMANDS}),
        ("tests/support/tools.py", {LOG}),
        ("tests/conftest.py", {LOG, COMMANDS}),
        (LOG, {LOG}),
        ("tests/test_short.py", set()),
    ],
)
def test_a_change_outdates_what_depends_on_it(tree: Path, changed: str, outdated: set[str]) -> None:
    before = digests(tree)
    assert set(before) == {LOG, COMMANDS}
    (tree / changed).write_text(FILES[changed] + "# changed\n")
    after = digests(tree)
    assert {piece for piece in before if before[piece] != after[piece]} == outdated


def test_what_is_missing_red_or_outdated_is_named(tree: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    now = digests(tree)
    green: dict[str, Any] = {"result": "passed", "tests": "1 passed in 2.00s", "date": "2026-01-02"}
    good = {piece: {**green, "digest": now[piece]} for piece in now}
    assert script["problems"](good, tree) == []
    assert script["problems"]({LOG: good[LOG]}, tree) == [f"{COMMANDS}: no result"]
    red = {**good, LOG: {**good[LOG], "result": "failed", "tests": "1 failed in 2.00s"}}
    assert script["problems"](red, tree) == [f"{LOG}: failed on 2026-01-02: 1 failed in 2.00s"]
    skipped = {**good, LOG: {**good[LOG], "tests": "2 passed, 1 skipped in 2.00s"}}
    assert script["problems"](skipped, tree) == [f"{LOG}: passed on 2026-01-02: 2 passed, 1 skipped in 2.00s"]
    old = {**good, LOG: {**green, "digest": "another"}, "tests/gone.py": good[LOG]}
    assert script["problems"](old, tree) == [
        f"{LOG}: code that it tests has changed since 2026-01-02",
        "tests/gone.py: no such file",
    ]
