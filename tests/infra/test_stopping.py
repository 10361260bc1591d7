"""SIGTERM and Ctrl-C end a process cleanly whatever it is doing, and at once if they must."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from segmint.infra.stopping import EXIT_CODE
from tests.support.builds import write_catalog, write_config

ROOT = Path(__file__).resolve().parents[2]
LINE = "interrupted: finished work is kept; run the same command again to resume\n"

COMMAND = """
import os, signal, sys, time
import typer
from segmint.infra import stopping
from segmint.pipeline.commands import cli
from segmint.pipeline.commands.console import guarded
me = os.getpid()
def stop(number=signal.SIGTERM):
    os.kill(me, number)
    time.sleep(0.3)
app = cli.app = typer.Typer()
@app.command()
@guarded
def command() -> None:
{body}
{before}
cli.main()
"""


def run(body: str, before: str = "") -> tuple[int, str, float]:
    """The exit code, standard error, and seconds of a command with this body."""
    script = COMMAND.format(body="\n".join(f"    {line}" for line in body.splitlines()), before=before)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=50)
    return done.returncode, done.stderr, time.monotonic() - began


SWALLOWED = """
try:
    stop()
except KeyboardInterrupt:
    raise {} from None
"""


@pytest.mark.parametrize(
    "body",
    [
        "stop()",
        "stop(signal.SIGINT)",
        "with stopping.uninterrupted():\n    stop()\n    print('cleaned', file=sys.stderr)",
        SWALLOWED.format("ImportError('numpy failed to import')"),
        SWALLOWED.format("SystemExit(1)"),
        "try:\n    stop()\nexcept BaseException:\n    pass\nstopping.check_stopping()",
        "stop()\nstop()",
    ],
)
def test_a_signal_becomes_one_line_and_exit_code_3(body: str) -> None:
    code, told, _ = run(body)
    assert (code, told.replace("cleaned\n", "")) == (EXIT_CODE, LINE)
    assert ("cleaned" in told) == ("cleaned" in body)


def test_a_signal_before_the_command_is_not_lost() -> None:
    code, told, _ = run("time.sleep(30)", before="stopping.stop_on_signals()\nstop()")
    assert (code, told) == (EXIT_CODE, LINE)


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_a_second_ctrl_c_ends_the_process_at_once_even_in_native_code(first: str) -> None:
    hang = f"""
import ctypes, threading
threading.Timer(1.5, os.kill, [me, signal.SIGINT]).start()  # a busy machine reads the first one late
try:
    os.kill(me, signal.{first})
    time.sleep(30)
finally:
    ctypes.CDLL(None).usleep(30_000_000)
"""
    code, told, seconds = run(hang)
    assert (code, told) == (EXIT_CODE, LINE)
    assert seconds < 15


def test_a_command_that_does_not_stop_is_ended_when_its_time_is_up() -> None:
    hang = """
import ctypes
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as while Ray starts
with stopping.uninterrupted():
    stop()
    ctypes.CDLL(None).usleep(30_000_000)
"""
    code, told, seconds = run(hang, before="stopping.STOP_S = 1.0")
    assert (code, told) == (EXIT_CODE, LINE)
    assert seconds < 15


FORKED = """
child = os.fork()
if not child:
    time.sleep(30)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
time.sleep(0.3)
assert not stopping.is_stopping()
"""


def test_a_forked_child_dies_of_a_signal_and_its_parent_goes_on() -> None:
    assert run(FORKED)[:2] == (0, "")


AS_RAY_ENDS = """
from ray._private.node import Node
from segmint.infra.ray_session import ray_session
with ray_session("local"):
    end = Node.kill_all_processes
    def interrupted(*arguments, **options):
        stop()
        end(*arguments, **options)
        print("ended", file=sys.stderr)
    Node.kill_all_processes = interrupted
"""


@pytest.mark.ray
def test_a_signal_while_ray_shuts_down_waits_for_its_end() -> None:
    assert run(AS_RAY_ENDS)[:2] == (EXIT_CODE, f"ended\n{LINE}")


AS_ON_A_BUSY_MACHINE = """
import ray
from ray._private.worker import global_worker
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from segmint.infra.ray_session import ray_session
step = StreamingExecutor._scheduling_loop_step
def late(self, *arguments):
    worker = global_worker.core_worker
    go_on = step(self, *arguments)
    end = time.monotonic() + 8
    while stopping.is_stopping() and time.monotonic() < end:
        time.sleep(0.01)
        worker.get_current_task_id()
    return go_on
StreamingExecutor._scheduling_loop_step = late
with ray_session("local"):
    rows = ray.data.range(1000, override_num_blocks=100).map_batches(lambda rows: time.sleep(0.2) or rows)
    blocks = rows.iter_internal_ref_bundles()
    next(blocks)
    stop()
"""


@pytest.mark.ray
def test_a_thread_of_ray_data_that_ends_late_does_not_change_the_exit_code() -> None:
    """If it uses Ray after `ray.shutdown`, Ray ends the process with exit code 1."""
    assert run(AS_ON_A_BUSY_MACHINE)[:2] == (EXIT_CODE, LINE)


def test_an_ignored_signal_stays_ignored() -> None:
    assert run("stop(signal.SIGINT)", before="signal.signal(signal.SIGINT, signal.SIG_IGN)")[:2] == (0, "")


AT_IMPORT = """
import os, signal, sys
from segmint.pipeline.commands.cli import main
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)
module = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
main()
"""


@pytest.mark.parametrize("module", ["segmint.pipeline.commands.building", "pyarrow", "ray.data"])
def test_a_signal_during_imports_stops_a_build(tmp_path: Path, module: str) -> None:
    catalog = write_catalog(tmp_path / "catalog.jsonl", [{"uri": "a.jpg", "license": "CC0-1.0", "image_id": "a"}])
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset")
    words = [sys.executable, "-c", AT_IMPORT, module, "build", str(config)]
    done = subprocess.run(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (EXIT_CODE, LINE)
    assert not (tmp_path / "dataset").exists()


def test_a_process_can_outlive_the_signals() -> None:
    script = (
        "import os, signal\nfrom segmint.infra.stopping import outlive_signals\noutlive_signals()\n"
        "for name in ('SIGTERM', 'SIGINT', 'SIGHUP'):\n    os.kill(os.getpid(), getattr(signal, name))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=50).returncode == 0
