"""A drill: for so many minutes workers, nodes and the driver of a training are killed, added and given notice at random.

``python -m tests.drill --minutes 10 --seed 0``: trainings on a cluster of several Ray nodes on this machine, whose only common storage is a
bucket. Each must end as the same training left alone: the same rows in the same steps, metrics and weights equal within float32 noise.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from leapray.data.prepare import prepare
from leapray.recipe import load_recipe
from leapray.training.trainer import train
from tests.ray_head import Head, Node, until
from tests.s3_server import Endpoint
from tests.samples import write_flat
from tests.test_nodes import TRAINER, history, same, uploaded, values, written

TRAINERS, EPOCHS = 3, 30
COMMAND = [sys.executable, "-c", "from leapray.cli import main; main()", "train"]


class Drill:
    """One training and what is done to it."""

    def __init__(self, head: Head, recipe: str, run: str, chance: random.Random, log: Path) -> None:
        self.head, self.recipe, self.run, self.chance, self.log = head, recipe, run, chance, log
        self.nodes: list[Node] = []
        self.done: Counter[str] = Counter()
        self.driver = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*COMMAND, self.recipe], env={**os.environ, **self.head.environment}, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def steps(self) -> int:
        """Steps that are logged, 0 while the log is just being replaced."""
        return max((record["step"] for record in history(self.run)), default=0)

    def disturb(self) -> None:
        """One thing at random."""
        kinds: dict[str, tuple[Callable[[], None], int]] = {
            "worker killed": (self._kill_worker, 3),
            "node killed": (self._kill_node, 3),
            "node added": (self._add_node, 4),
            "notice given": (self._give_notice, 2),
            # rare, for it takes three minutes until Ray forgets what an elastic training had asked for
            "driver killed": (self._kill_driver, 1),
        }
        (kind,) = self.chance.choices(list(kinds), [weight for _, weight in kinds.values()])
        before = self.done.total()
        kinds[kind][0]()
        if self.done.total() > before:
            print(f"{time.strftime('%X')}  {kind} at step {self.steps}, {len(self.nodes)} further trainers", flush=True)

    def _kill_worker(self) -> None:
        workers = [pid for pid in self.head.processes() if b"RayTrainWorker" in command_line(pid)]
        if workers:
            os.kill(self.chance.choice(workers), signal.SIGKILL)
            self.done["workers killed"] += 1

    def _kill_node(self) -> None:
        if self.nodes:
            self.nodes.pop(self.chance.randrange(len(self.nodes))).kill()
            self.done["nodes killed"] += 1

    def _add_node(self) -> None:
        if len(self.nodes) < TRAINERS - 1:
            try:
                self.nodes.append(self.head.add(1, resources=TRAINER))
                self.done["nodes added"] += 1
            except TimeoutError:
                # Ray's own processes may not come up in time on a busy machine
                self.head.nodes[-1].kill()
                self.done["nodes that did not come up"] += 1

    def _give_notice(self) -> None:
        if self.nodes:
            node = self.nodes.pop(self.chance.randrange(len(self.nodes)))
            self.head.drain(node, seconds=15)
            self.done["notices given"] += 1

    def _kill_driver(self) -> None:
        self.driver.kill()
        self.driver.wait()
        self.done["drivers killed"] += 1
        self.driver = self._start()

    def finish(self) -> None:
        """Wait for the end. Raises RuntimeError, with what the driver printed, when it is not a good one."""
        until(lambda: self.driver.poll() is not None, "the training to end", patience=900)
        if self.driver.returncode:
            raise RuntimeError(self.log.read_text())


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def drill(minutes: float, seed: int) -> None:
    chance, deadline, total = random.Random(seed), time.monotonic() + 60 * minutes, Counter[str]()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        endpoint = Endpoint()
        for name, value in endpoint.environment().items():
            patch.setenv(name, value)
        bucket, root = start_store(endpoint), Path(folder)
        write_flat(root / "flat", stop="0001-05", steps=150)
        alone = values(str(root), epochs=EPOCHS) | {"resources": {}}
        recipe = load_recipe(written(root / "alone.yaml", alone))
        prepare(recipe)
        run = train(recipe).run_url
        steps = history(run)[-1]["step"]
        print(f"{time.strftime('%X')}  left alone: {steps} steps", flush=True)
        with Head(cpus=0) as head:
            head.add(2, labels="role=data")
            head.add(1, resources=TRAINER)
            shared = values(uploaded(root, bucket), epochs=EPOCHS)
            number = 0
            while time.monotonic() < deadline:
                number += 1
                shared["training"]["run"] = ours = f"{bucket}/run-{number}"
                file = written(root / f"{number}.yaml", shared)
                if number == 1:
                    prepared = head.leapray("prepare", file)
                    assert prepared.returncode == 0, prepared.stderr
                shaken = Drill(head, file, ours, chance, root / f"{number}.log")
                while time.monotonic() < deadline and shaken.driver.poll() is None:
                    time.sleep(chance.uniform(5, 30))
                    shaken.disturb()
                shaken.finish()
                same(ours, run)
                total += shaken.done
                print(f"{time.strftime('%X')}  training {number} ended as the one left alone, after {dict(shaken.done)}", flush=True)
                for node in shaken.nodes:
                    node.kill()
    print(f"{number} trainings of {steps} steps each ended as one left alone; in {minutes:g} minutes {dict(total)}")


def start_store(endpoint: Endpoint) -> str:
    """Put moto behind the endpoint; the URL of a bucket."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    endpoint.store = server.get_host_and_port()
    s3fs.S3FileSystem(use_listings_cache=False).mkdir("drill")
    return "s3://drill"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    drill(asked.minutes, asked.seed)
