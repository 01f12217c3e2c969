"""The notebook's loop does the same work as ``predict`` and ``submit``."""

from pathlib import Path

import numpy as np
import torch

from leapray.bench.predict import predict_in_loop, write_csv
from leapray.climsim.schema import FLUXES, KAGGLE
from leapray.data.fitting import Fitting
from leapray.data.flat import list_pieces, read_piece
from leapray.data.moments import Moments
from leapray.evaluation.tables import read_ids, read_targets
from leapray.inference.parts import part_writer
from leapray.inference.submission import write_submission
from leapray.models.directory import load_model, save_model
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.columns import CHANNELS, SCORED, TARGETS
from tests.samples import random_rows, write_flat
from tests.target_tables import write_targets

CPU = torch.device("cpu")


def test_its_submission_is_ours(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-03", steps=4)
    network = Choice(name="mlp", options={"hidden": [8]})
    transform = Fitting(KAGGLE, Choice(name="reference"), ()).fit(Moments.of(random_rows(200)), {})
    model = str(tmp_path / "model")
    save_model(model, build_network(network.name, network.options, CHANNELS).state_dict(), network, transform)

    (block,) = (block for piece in list_pieces(str(flat)) for block in read_piece(piece, targets=False))
    with part_writer(str(tmp_path / "ours"), 0, TARGETS) as write, torch.inference_mode():
        write(block, load_model(model).emulator(torch.from_numpy(block.inputs)).numpy(), [])
    asked = block.sample_id.to_pylist()[::-1]
    sample = write_targets(tmp_path / "sample.parquet", asked, np.tile(SCORED.astype(np.int64), (len(asked), 1)))
    write_submission(str(tmp_path / "ours"), sample, str(tmp_path / "ours.csv"))

    frame = predict_in_loop(load_model(model).emulator, [str(path) for path in flat.glob("*.parquet")], CPU)
    write_csv(frame, sample, str(tmp_path / "notebook.csv"))

    files = [str(tmp_path / f"{name}.csv") for name in ("ours", "notebook")]
    assert [read_ids(file).to_pylist() for file in files] == [asked, asked]
    ours, theirs = (np.concatenate(list(read_targets(file, TARGETS))) for file in files)
    # that fluxes are not negative is our physics alone
    fluxes = slice(TARGETS[FLUXES[0].name].start, None)
    theirs[:, fluxes] = theirs[:, fluxes].clip(0)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)
