"""Several processes with gradients exchanged by DDP, without Ray, beside one."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from leapray.errors import UserError
from leapray.models.registry import build_network
from leapray.training import checkpoint
from leapray.training.loop import Loop
from leapray.training.pace import Peers
from tests.columns import CHANNELS
from tests.training.test_loop import CPU, Batches, training

ROWS = ("trained_rows", "row_checksum")
ALL_AT_ONCE = training(
    epochs=2,
    validations=2,
    batch_size=32,
    accumulate=3,
    clip_norm=0.5,
    ema={"every": 2, "after": 3, "ramp": True},
    loss={"name": "pair"},
)


def network():
    torch.manual_seed(3)
    return build_network("mlp", {"hidden": [16], "confidence": True}, CHANNELS)


class Poisoned(Batches):
    """A NaN in the third step, on one rank only."""

    def train(self, epoch, first_step=0):
        for index, batch in enumerate(super().train(epoch, first_step)):
            yield batch | {"targets": batch["targets"] * np.float32("nan")} if self.part.start and index == 2 else batch


def gather(array):
    ours = torch.from_numpy(array)
    parts = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, ours)
    return [part.numpy() for part in parts]


def rank(number, folder, world):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=world)
    loop = Loop(DistributedDataParallel(network()), Batches(rank=number, world=world), ALL_AT_ONCE, CPU, Peers(number, world, gather))
    fitted = loop.fit(report_seconds=0.01 * (1 + number))
    checkpoint.save(f"{folder}/{number}", {"weights": fitted.weights, "history": fitted.history})
    poisoned = Loop(DistributedDataParallel(network()), Poisoned(rank=number, world=world), training(), CPU, Peers(number, world, gather))
    with pytest.raises(UserError) as caught:
        poisoned.fit(report_seconds=0.01 * (1 + number))
    checkpoint.save(f"{folder}/{number}-nan", {"sentence": str(caught.value)})
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3], ids=["even", "uneven"])
def test_ranks_train_as_one_and_stop_together(tmp_path, world):
    """Of three, which do not divide the eight lanes, one has fewer rows of each step than the others."""
    mp.start_processes(rank, args=(str(tmp_path), world), nprocs=world, start_method="spawn")
    alone = Loop(network(), Batches(), ALL_AT_ONCE, CPU).fit()
    for number in range(world):
        together = checkpoint.load(f"{tmp_path}/{number}")
        for name, weights in alone.weights.items():
            torch.testing.assert_close(together["weights"][name], weights, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(together["history"], alone.history, strict=True):
            for key in ("loss", "loss_curve", "val_loss", "score", "skill", "r2", "val_rows"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
            assert [ours[key] for key in ROWS] == [theirs[key] for key in ROWS]
    sentences = {checkpoint.load(f"{tmp_path}/{number}-nan")["sentence"] for number in range(world)}
    assert len(sentences) == 1
    assert "nan at epoch 1, step 3 of 8, in rows of lr and hr, in columns ptend_t_0" in sentences.pop()
