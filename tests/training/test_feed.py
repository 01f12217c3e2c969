import numpy as np
import pytest
import torch

from leapray.training.feed import Feed

CPU = torch.device("cpu")


def batch(rows, writeable=True):
    values = {
        "inputs": np.ones((rows, 3), np.float32),
        "targets": np.zeros((rows, 2), np.float32),
        "source": np.ones(rows, np.int16),
        "row": np.arange(rows),
    }
    for array in values.values():
        array.flags.writeable = writeable
    return values


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("writeable", [True, False])
def test_gives_tensors_that_may_be_written_to(writeable):
    held = batch(4, writeable)
    (ready,) = Feed(iter([held]), CPU)
    ready.inputs.add_(1)
    assert ready.inputs.dtype == ready.targets.dtype == torch.float32
    assert ready.source.dtype == torch.int64
    assert (held["inputs"] == (2 if writeable else 1)).all()


def test_tells_how_long_it_waited_for_data(monkeypatch):
    clock = iter([10.0, 10.5, 20.0, 20.25, 30.0])
    monkeypatch.setattr("leapray.training.feed.time.perf_counter", lambda: next(clock))
    feed = Feed(iter([batch(1), batch(1)]), CPU)
    list(feed)
    assert feed.waited == 0.75
