import json
import subprocess
import sys

import pytest

from segmint.infra.log import configure, get_logger, without_secrets


@pytest.fixture(autouse=True)
def _fresh_structlog():
    import structlog

    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def test_json_lines_go_to_standard_error_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    configure(json=True)
    log = get_logger("build")
    log.debug("too_quiet")
    log.info("fetched", uri="https://u:hunter2@h/x?X-Amz-Signature=abc", options={"secret": "hunter2", "region": "r"})
    try:
        raise ValueError("no https://u:hunter2@h")
    except ValueError:
        log.exception("failed", token="hunter2")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hunter2" not in captured.err
    first, second = (json.loads(line) for line in captured.err.splitlines())
    assert (first["event"], first["level"], first["logger"]) == ("fetched", "info", "build")
    assert first["options"] == {"secret": "[redacted]", "region": "r"}
    assert first["uri"] == "https://[redacted]@h/x?X-Amz-Signature=[redacted]"
    assert "ValueError" in second["exception"]


def test_off_a_terminal_lines_are_json_and_on_request_they_are_not(capsys) -> None:
    configure()
    get_logger("x").warning("hello")
    assert json.loads(capsys.readouterr().err)["event"] == "hello"
    configure(json=False)
    get_logger("x").warning("hello", n=1)
    line = capsys.readouterr().err
    assert "hello" in line
    assert "n=1" in line
    assert not line.startswith("{")


def test_a_logger_works_before_anything_is_configured() -> None:
    script = "from segmint.infra.log import get_logger; get_logger('x').info('hello')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    assert json.loads(done.stderr)["event"] == "hello"


def test_secrets_are_found_at_any_depth() -> None:
    value = {"a": [{"aws_secret_access_key": "x"}], "api_key": "y", "tokens": 3, "password": None}
    expected = {"a": [{"aws_secret_access_key": "[redacted]"}], "api_key": "[redacted]", "tokens": 3, "password": None}
    assert without_secrets(value) == expected


def test_lines_of_text_hold_no_credential_and_command_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A file's name or an error can contain either, and a terminal obeys the escape sequences in a line."""
    title = "\x1b]0;owned\x07\x9b2J\rhello\u202egpj.exe"
    configure(json=False)
    log = get_logger("storage")
    log.warning(f"skipped {title}", name=title, names=[title])
    try:
        raise ValueError(f"https://me:hunter2@host, {title}")
    except ValueError:
        log.exception("failed")
    printed = capsys.readouterr().err
    assert printed.count("hello") == 4
    assert "\nTraceback (most recent call last):\n" in printed
    assert "hunter2" not in printed
    assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(printed)
