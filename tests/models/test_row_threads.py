"""Threads that divide rows: whose share is which, what they compute, and what they leave behind."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from leapray.models.registry import build_network
from leapray.models.row_threads import RowThreads, divides_rows, forward_pass
from tests.columns import CHANNELS, INPUTS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def small(name: str = "low-res-aqua") -> nn.Module:
    torch.manual_seed(0)
    options = {
        "low-res-aqua": {"encoder": (8,), "lstm_hidden": 4, "lstm_layers": 2, "gru_hidden": 2, "head": (), "confidence": True},
        "low-res-high-res": {"embedding": 4, "hidden": 4, "layers": 2, "head": 8},
        "mlp": {"hidden": (8,)},
    }
    return build_network(name, options[name], CHANNELS).eval()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 12])
def test_shares_are_every_row_once_in_order(rows: int) -> None:
    with RowThreads(3) as threads:
        found = threads.map(lambda number, share: (number, list(range(rows)[share])), rows)
    assert [row for _, share in found for row in share] == list(range(rows))
    assert len({number for number, _ in found}) == len(found) == min(rows, 3)
    sizes = [len(share) for _, share in found]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0


def test_each_thread_has_one_intra_op_thread_and_all_of_them_end() -> None:
    before, together = set(threading.enumerate()), threading.Barrier(3, timeout=30)

    def seen(number: int, share: slice) -> tuple[threading.Thread, int]:
        together.wait()
        return threading.current_thread(), torch.get_num_threads()

    with RowThreads(3) as threads:
        found = threads.map(seen, 3)
        again = threads.map(seen, 3)
    assert [count for _, count in found] == [1, 1, 1]
    assert found[0][0] is threading.current_thread()
    assert {thread for thread, _ in found} == {thread for thread, _ in again}
    assert set(threading.enumerate()) == before
    assert torch.get_num_threads() == 3


def test_a_fault_of_one_thread_is_raised_when_all_have_finished() -> None:
    finished = []

    def work(number: int, share: slice) -> None:
        if number != 1:
            finished.append(number)
        else:
            raise ValueError("of the second")

    with pytest.raises(ValueError, match="of the second"), RowThreads(3) as threads:
        threads.map(work, 3)
    assert sorted(finished) == [0, 2]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("name", ["low-res-aqua", "low-res-high-res"])
def test_recurrent_networks_are_divided_and_predict_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs, shares = small(name), torch.randn(10, INPUTS.width), []
    with torch.no_grad():
        expected = network(inputs)
    network.register_forward_pre_hook(lambda _, given: shares.append(len(given[0])))
    with forward_pass(network, CPU) as forward:
        found = forward(inputs)
    assert sorted(shares) == [3, 3, 4]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not found.requires_grad
    with torch.inference_mode(), forward_pass(network, CPU) as forward:
        assert forward(inputs).is_inference()


def test_other_networks_are_divided_only_if_asked() -> None:
    network, inputs, shares = small("mlp"), torch.randn(10, INPUTS.width), []
    network.register_forward_pre_hook(lambda _, given: shares.append(len(given[0])))
    assert not divides_rows(network)
    with forward_pass(network, CPU) as forward:
        whole = forward(inputs)
    assert shares == [10]
    with forward_pass(network, CPU, divide=True) as forward:
        torch.testing.assert_close(forward(inputs), whole, rtol=1e-5, atol=1e-6)
    assert sorted(shares[1:]) == [3, 3, 4]
    torch.set_num_threads(1)
    with forward_pass(network, CPU, divide=True) as forward:
        forward(inputs)
    assert shares[4:] == [10]
