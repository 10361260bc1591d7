"""Packages of extras: found missing by name, whenever a command comes to need one."""

import pytest
import typer

from segmint.pipeline.commands.console import extra_of, guarded


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("duckdb", "web"),
        ("starlette", "web"),
        ("facenet_pytorch", "detectors"),
        ("scipy.stats", "audit"),
        ("jinja2", "report"),
        ("ray.data", "build"),
        ("skimage", "demo"),
        ("torch", None),
    ],
)
def test_the_lightest_extra_with_a_module_is_named(module: str, extra: str | None) -> None:
    assert extra_of(module) == extra


@pytest.mark.parametrize(("module", "code", "said"), [("ijson", 2, "segmint[build]"), ("elsewhere", 3, "unexpected")])
def test_a_module_that_is_missed_in_the_middle_of_a_command_is_told(
    module: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @guarded
    def command() -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == code
    assert said in capsys.readouterr().err
