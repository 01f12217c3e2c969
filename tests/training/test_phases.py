"""The phases of a step, in a trace of the profiler and on a clock."""

import json
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from leapray.recipe import Profile
from leapray.training import phases
from leapray.training.loop import Loop
from leapray.training.phases import FORWARD, OPTIMIZER, PHASES, UNTIMED, Phases, PhaseTimer, StepProfiler
from tests.training.test_loop import Batches, linear, training

CPU = torch.device("cpu")
STEPS = 8


@pytest.fixture(params=[1, 2], ids=["one thread", "rows in threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    own = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(own)


def fitted(seen: Phases, epochs: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    loop = Loop(linear(), Batches(steps=STEPS), training(epochs=epochs), CPU, cpu_threading="rows", phases=seen)
    return loop.fit().weights


def test_a_trace_has_the_phases_of_the_steps_that_were_asked_for_and_changes_nothing(threads: int) -> None:
    written: list[bytes] = []
    weights = fitted(StepProfiler(Profile(start=3, steps=2), CPU, written.append))
    (trace,) = written
    names = Counter(event.get("name") for event in json.loads(trace)["traceEvents"] if event.get("cat") == "user_annotation")
    assert names[FORWARD] == names["data wait"] == names[OPTIMIZER] / 2 == 2
    assert set(PHASES) <= set(names)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in fitted(UNTIMED).items())


def test_a_trace_goes_on_through_epochs_and_ends_with_the_training() -> None:
    written: list[bytes] = []
    fitted(StepProfiler(Profile(start=STEPS - 1, steps=2), CPU, written.append), epochs=2)
    fitted(StepProfiler(Profile(start=STEPS - 1, steps=100), CPU, written.append))
    fitted(StepProfiler(Profile(start=STEPS), CPU, written.append))
    assert [trace.count(b'"name": "backward"') for trace in written] == [2, 1]


def test_a_clock_adds_up_every_phase_of_every_step(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # a clock that ticks once each time it is read: a phase's time is then how often it ended
    ticks = iter(range(100_000))
    monkeypatch.setattr(phases, "now", lambda device: next(ticks))
    timer = PhaseTimer(CPU, warm=2)
    fitted(timer)
    # the last step is not known to have ended
    assert timer.steps == STEPS - 3
    assert timer.whole > sum(timer.seconds.values())
    counts = {name: timer.seconds[name] / timer.steps for name in PHASES}
    assert counts.pop("metrics") > 1
    assert counts == {"data wait": 1, "copy": 1, "forward": 1, "loss": 1, "backward": 1, "optimizer": 2}
