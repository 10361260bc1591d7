"""Machines in miniature: Linux namespaces, each with its own network, disk, and processes, connected by a switch.

Like separate machines, they reach each other only over the network: /tmp and /dev/shm are separate file systems, and
the rest of the disk, which has the software, is read-only. So is the checkout, also if it lies in /tmp. No route leads
out of the switch's network. Everything ends with the process that started it, even if that is killed.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.builds import ROOT
from tests.support.clusters import OBJECT_STORE

NETWORK = f"198.18.{os.getpid() % 256}"
"""First three bytes of all addresses. Networks in 198.18.0.0/15 are reserved for tests."""

HOST = f"{NETWORK}.1"
"""The address at which machines reach the one that the test runs on."""

STARTS = 5
"""Maximum number of attempts to start a node."""

_PORTS = {
    "metrics-export-port": 8080,
    "dashboard-agent-listen-port": 8081,
    "dashboard-agent-grpc-port": 8082,
    "runtime-env-agent-port": 8083,
}

_BOOT = """
hostname "$1" && ip link set lo up || exit 1
cd "$2" || exit 1
for folder in /tmp /dev/shm; do mount -t tmpfs -o size=2g,mode=1777 "$1" $folder || exit 1; done
if ! [ -d "$2" ]; then
    mkdir -p "$2" && mount --no-canonicalize --bind . "$2" && mount -o remount,bind,ro "$2" || exit 1
fi
cd / && mount -o remount,bind,ro / || exit 1
echo ready
read -r forever
"""
"""First process of a machine. It ends when its standard input is closed, which ends all processes on the machine."""


class Machine:
    """A machine that is on. Raises `OSError` if this process isn't allowed to create namespaces."""

    def __init__(self, name: str) -> None:
        options = ("--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--net", "--uts", "--ipc")
        self._holder = subprocess.Popen(
            ["unshare", *options, "bash", "-c", _BOOT, "boot", name, str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if (said := self._holder.stdout.readline()) != b"ready\n":
            raise OSError(f"the machine {name} didn't start: {(said + self._holder.stdout.read()).decode().strip()}")
        self._first = psutil.Process(self._holder.pid).children()[0]

    @property
    def pid(self) -> int:
        """ID of the first process, as this machine counts."""
        return self._first.pid

    @property
    def prefix(self) -> list[str]:
        """Words that run a command there, in the checkout."""
        namespaces = ("--mount", "--net", "--uts", "--ipc", "--pid")
        return ["nsenter", f"--target={self.pid}", *namespaces, "env", "-C", str(ROOT)]

    @property
    def disk(self) -> Path:
        """The machine's /tmp, seen from here."""
        return Path(f"/proc/{self.pid}/root/tmp")

    def receive(self, file: Path) -> None:
        """Copy a file to the same path there."""
        target = Path(f"/proc/{self.pid}/root{file.resolve()}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)

    def ip(self, *words: str) -> None:
        """Run `ip` in the machine's network."""
        command = ["nsenter", f"--target={self.pid}", "--net", "ip", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")

    def processes(self) -> list[psutil.Process]:
        """All that runs there now; nothing if the machine is off."""
        try:
            mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        except OSError:
            return []
        found = []
        for process in psutil.process_iter():
            with suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == mine:
                    found.append(process)
        return found

    def power_off(self) -> None:
        """Send SIGKILL to everything at once: the first process of a PID namespace takes all others with it."""
        with suppress(psutil.NoSuchProcess):
            self._first.kill()
        self._holder.wait(60)


class Switch(Machine):
    """A machine that only connects others, and this one."""

    def __init__(self) -> None:
        super().__init__("switch")
        self.ip("link", "add", "bridge", "type", "bridge")
        self.ip("link", "set", "bridge", "up")
        here = f"segmint{os.getpid()}"
        self.ip("link", "add", "port1", "type", "veth", "peer", "name", here, "netns", str(os.getpid()))
        self.ip("link", "set", "port1", "master", "bridge", "up")
        for words in (["addr", "add", f"{HOST}/24", "dev", here], ["link", "set", here, "up"]):
            subprocess.run(["ip", *words], check=True)

    def connect(self, machine: Machine, number: int) -> str:
        """Connect a machine, and return its address."""
        port, address = f"port{number}", f"{NETWORK}.{number}"
        self.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
        self.ip("link", "set", port, "master", "bridge", "up")
        machine.ip("addr", "add", f"{address}/24", "dev", "eth0")
        machine.ip("link", "set", "eth0", "up")
        return address

    def disconnect(self, number: int) -> None:
        """Delete the port of a machine that is off: the kernel would do so only some time later."""
        self.ip("link", "delete", f"port{number}")

    def set_port(self, number: int, state: str) -> None:
        """Cut a machine off with `down`: what it sends and what others send it is lost silently, until `up`."""
        self.ip("link", "set", f"port{number}", state)


class RayMachine(Machine):
    """A machine that runs `ray start --block`."""

    def __init__(self, name: str, switch: Switch, number: int) -> None:
        super().__init__(name)
        self._switch, self._number = switch, number
        self.address = switch.connect(self, number)
        self._log = self.disk / "ray-start.log"
        self._ray: subprocess.Popen[bytes] | None = None

    def start_ray(self, *arguments: str, **environment: str) -> None:
        """Start Ray, and return when the node is part of its cluster.

        On a busy machine, a raylet often ends after 15 seconds, because its agent hasn't written its port yet. So this
        tries again.
        """
        command = [*self.prefix, "env", "-C", "/", Path(sys.executable).parent / "ray", "start", "--block"]
        options = [
            f"--node-ip-address={self.address}",
            f"--object-store-memory={OBJECT_STORE}",
            "--disable-usage-stats",
            *(f"--{name}={port}" for name, port in _PORTS.items()),
        ]
        kept = (name for name in os.environ if not name.startswith("RAY_") and name != "PYTHONPATH")
        own = {name: os.environ[name] for name in kept}
        for _ in range(STARTS):
            with self._log.open("wb") as stream:
                self._ray = subprocess.Popen(
                    [*command, *options, *arguments],
                    env={**own, "OMP_WAIT_POLICY": "PASSIVE", **environment},
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            while self.runs_ray():
                if "Ray runtime started" in self.told():
                    return
                time.sleep(0.1)
            for process in self.processes():
                if process.pid != self.pid:
                    process.kill()
        raise AssertionError(f"Ray did not start:\n{self.told()}")

    def runs_ray(self) -> bool:
        """Whether `ray start` runs. It ends with the first process of the node that ends."""
        return self._ray is not None and self._ray.poll() is None

    def told(self) -> str:
        """Return the output of `ray start`."""
        return self._log.read_text()

    def power_off(self) -> None:
        """Kill everything, and free the port."""
        super().power_off()
        with suppress(OSError):
            self._switch.disconnect(self._number)

    def cut_off(self) -> None:
        """Disconnect the machine."""
        self._switch.set_port(self._number, "down")

    def connect_again(self) -> None:
        """Undo `cut_off`."""
        self._switch.set_port(self._number, "up")


class RayMachines:
    """A head and a worker, each with so many logical CPUs."""

    def __init__(self, switch: Switch, cpus: int) -> None:
        self._cpus = cpus
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.head = RayMachine("head", switch, 2)
        self.worker = RayMachine("worker", switch, 3)
        # What a driver on the head needs.
        self.environment = {"RAY_ADDRESS": f"{self.head.address}:6379", **self.token}

    def start_head(self) -> None:
        """Start Ray on the first machine."""
        self.head.start_ray("--head", "--include-dashboard=false", f"--num-cpus={self._cpus}", **self.token)

    def start_worker(self) -> None:
        """Start Ray on the second machine, for the first time or again."""
        address = f"--address={self.environment['RAY_ADDRESS']}"
        self.worker.start_ray(address, f"--num-cpus={self._cpus}", **self.token)


@contextmanager
def switched_on(switch: Switch, cpus: int) -> Iterator[RayMachines]:
    """Two machines that run Ray; off afterwards."""
    machines = RayMachines(switch, cpus)
    try:
        machines.start_head()
        machines.start_worker()
        yield machines
    finally:
        machines.head.power_off()
        machines.worker.power_off()
