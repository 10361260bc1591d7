"""Azurite, Microsoft's emulator of Azure's blob storage, from its npm package."""

import base64
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "3.37.0"
INTEGRITY = "sha512-dl2AXMkXtVlX9s3U3ttIQFFlKwe64k/ugSIVNT4V3qX488Ncw988rIHAs6apgUtfEzyqwtFN9MZp0Foq60Htag=="
ACCOUNT = "segmint"
_PATIENCE = 60


@contextmanager
def azurite(cache: Path, data: Path) -> Iterator[dict[str, str]]:
    """Run Azurite, which is installed in `cache` if it isn't yet; yield variables with its account and address."""
    program = _install(cache / f"azurite-{VERSION}")
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "node", program, "--blobHost", "127.0.0.1", "--blobPort", port, "--location", data, "--silent",
        "--skipApiVersionCheck", "--disableProductStyleUrl",
    ]  # fmt: skip
    data.mkdir()
    log = (data / "azurite.log").open("wb")
    environment = os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"}
    process = subprocess.Popen([str(part) for part in command], env=environment, stdout=log, stderr=log)
    try:
        _wait(process, port, data / "azurite.log")
        yield {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": key,
            "AZURITE_URL": f"http://127.0.0.1:{port}/{ACCOUNT}",
            "AZURITE_PID": str(process.pid),
        }
    finally:
        process.kill()
        process.wait()
        log.close()


def _install(folder: Path) -> Path:
    """Install the package if its archive is the one that was tested; return the program. No script of it is run."""
    program = folder / "node_modules/azurite/dist/src/blob/main.js"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        packed = _npm("pack", "--json", "--pack-destination", str(folder), f"azurite@{VERSION}")
        (archive,) = json.loads(packed)
        if archive["integrity"] != INTEGRITY:
            raise RuntimeError(f"azurite {VERSION} is {archive['integrity']}, not {INTEGRITY}")
        quiet = ("--no-audit", "--no-fund", "--no-save", "--omit=dev", "--ignore-scripts")
        _npm("install", *quiet, "--prefix", str(folder), str(folder / archive["filename"]))
    return program


def _npm(*arguments: str) -> str:
    done = subprocess.run(["npm", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"npm {arguments[0]} failed: {done.stderr[-1000:]}")
    return done.stdout


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the server takes connections."""
    for _ in range(_PATIENCE * 5):
        if process.poll() is not None:
            raise RuntimeError(f"azurite ended with {process.returncode}: {log.read_text()[-500:]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"azurite does not answer within {_PATIENCE} seconds")
