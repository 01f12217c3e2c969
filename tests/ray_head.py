"""A Ray cluster of separate processes, as ``ray start`` makes one of many machines: a head that wants its token, and nodes."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

_BIN = Path(sys.executable).parent
_PATIENCE = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One machine's worth of Ray: the processes of a ``ray start``, in a process group of their own."""

    id: str
    """Ray's, once it has joined."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        with log.open("wb") as out:
            # its usual port may be another Ray's, and an agent without one takes no jobs
            own = ["--block", "--disable-usage-stats", f"--dashboard-agent-listen-port={free_port()}"]
            command = [str(_BIN / "ray"), "start", *own, *arguments]
            self.process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def kill(self) -> None:
        """As a machine dies: all at once, without a word."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        group = self.process.pid
        members = _descendants(group)
        for pid in (*members, group):
            _signal(pid, how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            how = signal.SIGKILL
        for pid in (*members, group):
            _signal(pid, signal.SIGKILL)
        self.process.wait(10)


class Head:
    """A cluster as a context: its head, with ``cpus`` CPUs, and what :meth:`add` adds. Every process of it has ``environment``.

    ``gpus`` are only told of: whether they are there is not looked at.
    """

    def __init__(self, cpus: int, environment: Mapping[str, str] | None = None, gpus: int = 0) -> None:
        # sockets' paths may not be long
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")
        self.folder = Path(self._folder.name)
        self.port, self.api_port = free_port(), free_port()
        # jobs say python, and mean the one that has leapray
        path = f"{_BIN}{os.pathsep}{os.environ['PATH']}"
        self.token = secrets.token_hex(32)
        self._own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "PATH": path, **(environment or {})}
        self.nodes: list[Node] = []
        self.head = self._start(
            [
                "--head",
                f"--port={self.port}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.api_port}",
                f"--num-cpus={cpus}",
                f"--num-gpus={gpus}",
                f"--temp-dir={self.folder}",
            ],
            "head",
        )
        self.address = self._wait_for_address()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a driver has to be told to join."""
        return {**self._own, "RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.api}

    def add(self, cpus: int, labels: str = "", resources: Mapping[str, float] | None = None) -> Node:
        """Another node, which has joined when this returns. ``labels`` as ``ray start`` takes them."""
        before = set(self.alive())
        told = [*([f"--labels={labels}"] if labels else []), *([f"--resources={json.dumps(resources)}"] if resources else [])]
        node = self._start([f"--address={self.address}", f"--num-cpus={cpus}", *told], f"node-{len(self.nodes)}")
        self.nodes.append(node)
        until(lambda: bool(set(self.alive()) - before), "a node to join")
        (node.id,) = set(self.alive()) - before
        return node

    def drain(self, node: Node, seconds: int) -> None:
        """Give notice that a node will be taken away, as of a spot instance."""
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
        told = self.run(["ray", "drain-node", "--address", self.address, "--node-id", node.id, *reason])
        assert told.returncode == 0, told.stdout + told.stderr

    def alive(self) -> list[str]:
        """Ids of the nodes that live."""
        said = self.run([sys.executable, "-c", _ALIVE])
        return list(json.loads(said.stdout.splitlines()[-1])) if said.returncode == 0 else []

    def free_cpus(self) -> float:
        """CPUs that nothing has taken."""
        said = self.run([sys.executable, "-c", _FREE])
        return float(said.stdout.splitlines()[-1]) if said.returncode == 0 else 0.0

    def processes(self) -> list[int]:
        """The processes of all nodes."""
        return [pid for node in (self.head, *self.nodes) for pid in _descendants(node.process.pid)]

    def wait_for_jobs(self) -> None:
        """Return once the head takes jobs, which it does some time after it answers."""
        until(lambda: self.run(["ray", "job", "submit", "--", "true"]).returncode == 0, "the head to take jobs")

    def logs(self) -> list[str]:
        """What the jobs that were submitted have printed, in the order in which they began."""
        files = self.folder.glob("session_*/logs/job-driver-*.log")
        return [file.read_text() for file in sorted(files, key=lambda file: file.stat().st_ctime)]

    def run(
        self, command: list[str], timeout: float = 300.0, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of somebody who may use the cluster."""
        told = {**os.environ, **self.environment, **environment}
        return subprocess.run(command, env=told, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)

    def leapray(self, *arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """A verb by a driver that joins."""
        return self.run([str(_BIN / "leapray"), *map(str, arguments)], cwd=cwd, **environment)

    def _start(self, arguments: list[str], name: str) -> Node:
        own = {**self._own, "RAY_raylet_start_wait_time_s": "120"}
        own.pop("RAY_ADDRESS", None)
        return Node(arguments, own, self.folder / f"{name}.log")

    def _wait_for_address(self) -> str:
        file = self.folder / "ray_current_cluster"

        def up() -> bool:
            if self.head.process.poll() is not None:
                raise RuntimeError((self.folder / "head.log").read_text())
            if not file.exists():
                return False
            try:
                asked = urllib.request.Request(f"{self.api}/api/version", headers={"Authorization": f"Bearer {self.token}"})
                with urllib.request.urlopen(asked, timeout=5) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        until(up, "the head to answer")
        return file.read_text().strip()

    def __enter__(self) -> Head:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for node in (*reversed(self.nodes), self.head):
            node.stop()
        self._folder.cleanup()


_JOINED = "import json, logging, ray; ray.init(log_to_driver=False, logging_level=logging.ERROR)\n"
_ALIVE = _JOINED + "print(json.dumps([node['NodeID'] for node in ray.nodes() if node['Alive']]))"
_FREE = _JOINED + "print(ray.available_resources().get('CPU', 0))"


def until(there: Callable[[], bool], what: str, patience: float = _PATIENCE) -> None:
    """Wait until something is so. Raises TimeoutError that names it."""
    deadline = time.monotonic() + patience
    while not there():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience:.0f} s for {what}")
        time.sleep(0.2)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(place.name))
    found, waiting = [], [pid]
    while waiting:
        here = children.get(waiting.pop(), [])
        found += here
        waiting += here
    return found


def _signal(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return
