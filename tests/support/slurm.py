"""A real Slurm cluster on this machine's loopback interface: munged, slurmctld, and a slurmd per node.

The nodes pretend to have the CPUs, memory, and GPU that `infra/slurm/build.sbatch` asks for.
"""

import getpass
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.s3_server import free_ports

CONFIGURATION = """
ClusterName=segmint
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until its old credential has expired, which takes at least 5 s.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=3600
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
NodeName=n[0-1] NodeHostname=localhost NodeAddr=127.0.0.1 Port={nodes} CPUs=16 RealMemory=65536 Gres=gpu:1
PartitionName=spot Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE
"""


@dataclass(frozen=True)
class SlurmTask:
    """State of one task of an array: a state such as COMPLETED, its exit code, and how often it was requeued."""

    state: str
    exit_code: int
    restarts: int
    node: str


class SlurmCluster:
    """A controller and two nodes, `n0` and `n1`; jobs in the partition `urgent` preempt those in `spot`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self, deadline_s: float = 60) -> None:
        """Start the daemons, and return when both nodes are idle."""
        folder = self._folder
        for name in ("state", "n0", "n1"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        controller, *ports = sorted(free_ports(3))
        text = CONFIGURATION.format(
            folder=folder, user=getpass.getuser(), controller=controller, nodes=f"[{','.join(map(str, ports))}]"
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text("NodeName=n[0-1] Name=gpu File=/dev/zero\n")
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("seed", "pid", "log")]
        self._start("munged", "--foreground", f"--key-file={key}", f"--socket={folder / 'munge.sock'}", *files)
        _until("munged's socket", (folder / "munge.sock").exists, deadline_s)
        self._start("slurmctld", "-D")
        for node in ("n0", "n1"):
            self._start("slurmd", "-D", "-N", node)
        _until("idle nodes", lambda: self._told("sinfo", "-h", "-p", "spot", "-o", "%T %D") == "idle 2", deadline_s)

    def submit(self, *arguments: str | Path, **environment: str) -> int:
        """Run `sbatch`; returns the job's id."""
        return int(self._told("sbatch", "--parsable", *arguments, **environment))

    def tasks(self, job: int) -> list[SlurmTask]:
        """The started tasks of an array, or the only one of another job, by their index in the array."""
        found = []
        for line in self._told("scontrol", "show", "job", "--oneliner", str(job)).splitlines():
            fields = dict(re.findall(r"(\w+)=(\S*)", line))
            if "-" in fields.get("ArrayTaskId", ""):  # the tasks that haven't started share a line
                continue
            exit_code = int(fields["ExitCode"].partition(":")[0])
            task = SlurmTask(fields["JobState"], exit_code, int(fields["Restarts"]), fields["NodeList"])
            found.append((int(fields.get("ArrayTaskId", 0)), task))
        return [task for _, task in sorted(found, key=lambda each: each[0])]

    def wait_for(self, job: int, what: str, found: Callable[[list[SlurmTask]], bool], timeout: float = 400) -> None:
        """Return when the tasks of a job are as wanted."""
        _until(f"{what} of job {job}", lambda: found(self.tasks(job)), timeout, lambda: str(self.tasks(job)))

    def wait(self, job: int, timeout: float = 400) -> list[SlurmTask]:
        """The tasks of a job when none waits or runs any more."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
        self.wait_for(job, "end", lambda tasks: bool(tasks) and all(task.state in ended for task in tasks), timeout)
        return self.tasks(job)

    def close(self) -> None:
        """End all jobs, then the daemons and what they started."""
        if (self._folder / "slurm.conf").exists():
            subprocess.run(["scancel", "-p", "spot"], env=self.environment, check=False, timeout=30)
        below = [child for daemon in self._daemons for child in psutil.Process(daemon.pid).children(recursive=True)]
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        _, left = psutil.wait_procs(below, timeout=30)
        for process in left:
            process.kill()

    def log(self) -> str:
        """The end of what each daemon printed."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self._folder.glob("*.out")))

    def _start(self, program: str, *arguments: str) -> None:
        with (self._folder / f"{len(self._daemons)}-{program}.out").open("wb") as stream:
            daemon = subprocess.Popen(
                [program, *arguments], env=self.environment, stdout=stream, stderr=stream, start_new_session=True
            )
        self._daemons.append(daemon)

    def _told(self, *command: str | Path, **environment: str) -> str:
        done = subprocess.run(
            [*map(str, command)],
            env={**self.environment, **environment},
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout.strip()


def _until(what: str, found: Callable[[], bool], timeout: float, told: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + timeout
    while not found():
        assert time.monotonic() < deadline, f"there was no {what} in {timeout:g} s: {told()}"
        time.sleep(0.2)


@contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Two nodes that wait for jobs; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path is short
    folder.chmod(0o755)  # munged refuses a socket that others can't reach
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        yield cluster
    except BaseException as error:
        error.add_note(cluster.log())
        raise
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
