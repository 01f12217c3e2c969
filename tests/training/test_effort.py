from threading import Event

import torch

from leapray.training import effort
from leapray.training.effort import Effort, Meter

CPU = torch.device("cpu")


def test_what_steps_cost_adds_up():
    one = Effort(2, 4.0, 1.0, 6.0, 100, (0.5, 1), 7)
    other = Effort(3, 6.0, 0.5, 2.0, 300, (2.0, 4), 5)
    assert one + other == Effort(5, 10.0, 1.5, 8.0, 300, (2.5, 5), 7)
    assert (one + other).figures(batch_size=8) == {
        "rows_per_s": 4.0,
        "data_wait_s": 1.5,
        "data_wait_share": 0.15,
        "seconds": 10.0,
        "cpus": 0.8,
        "memory_bytes": 300,
        "gpu_use": 0.5,
        "gpu_memory_bytes": 7,
    }


def test_what_a_machine_does_not_tell_is_left_out_and_no_steps_have_no_figures():
    assert {"memory_bytes", "gpu_use", "gpu_memory_bytes"}.isdisjoint(Effort(1, 1.0).figures(1))
    assert Effort().figures(8) == {}
    assert Effort() + Effort(1, 2.0, 1.0) == Effort(1, 2.0, 1.0)


def test_a_meter_reads_this_process_since_it_was_last_read(monkeypatch):
    clock = iter([10.0, 12.5, 20.0, 21.0, 21.0])
    monkeypatch.setattr(effort.time, "process_time", lambda: next(clock))
    with Meter(CPU) as meter:
        first = meter.took(4, 5.0, 1.0)
        second = meter.took(4, 5.0, 1.0)
    assert (first.cpu_seconds, second.cpu_seconds) == (2.5, 1.0)
    assert (first.steps, first.seconds, first.waited) == (4, 5.0, 1.0)
    assert first.memory is None or first.memory > 10 * 2**20
    assert first.gpu_memory is None
    assert first.gpu_use == (0.0, 0)


def test_memory_is_that_of_the_process_itself(tmp_path, monkeypatch):
    status = tmp_path / "status"
    monkeypatch.setattr(effort, "_STATUS", status)
    assert effort._own_memory() is None
    status.write_text("VmRSS:\t 900 kB\nRssAnon:\t  12 kB\nRssShmem:\t 888 kB\n")
    assert effort._own_memory() == 12 * 1024


def test_the_gpu_is_asked_beside_the_steps_until_it_does_not_answer(monkeypatch):
    monkeypatch.setattr(effort, "_SAMPLE_SECONDS", 0.0)
    answers, asked_out = iter([0.25, 0.75]), Event()

    def ask():
        if (answer := next(answers, None)) is None:
            asked_out.set()
            raise RuntimeError("the driver is gone")
        return answer

    with Meter(CPU) as meter:
        meter._sampler = effort._Sampler(ask)
        assert asked_out.wait(10)
        assert meter.took(1, 1.0, 0.0).gpu_use == (1.0, 2)
        assert meter.took(1, 1.0, 0.0).gpu_use == (0.0, 0)


def test_a_gpu_that_tells_nothing_is_not_asked(monkeypatch):
    def silent(index):
        raise RuntimeError(f"NVML does not tell of GPU {index}")

    monkeypatch.setattr(torch.cuda, "utilization", silent)
    assert effort._nvml(0) is None


def test_a_gpu_that_tells_is_asked_for_a_share(monkeypatch):
    monkeypatch.setattr(torch.cuda, "utilization", lambda index: 25 * (index + 1))
    assert effort._nvml(1)() == 0.5
