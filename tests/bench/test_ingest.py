"""How the rate of a loader is taken from its batches."""

import pytest
import torch

from leapray.bench.ingest import drain
from leapray.errors import UserError


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(4, 2), torch.zeros(4, 1))] * count


def test_a_rate_is_of_the_rows_that_came_however_few_of_those_there_are() -> None:
    # workers drop what does not fill a batch, so that three of them give three batches of five
    found = drain(batches(3))
    assert found["rows/s"] > 0
    assert found["first"] > 0


def test_two_batches_tell_no_rate() -> None:
    with pytest.raises(UserError, match="2 batches are too few for a rate; give it more --rows"):
        drain(batches(2))
