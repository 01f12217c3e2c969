"""Small models on the recorded statistics of low-res, and what an export of them must give."""

from pathlib import Path

import numpy as np
import torch

from leapray.climsim.grid import figures
from leapray.climsim.schema import FLUXES, KAGGLE
from leapray.data.scaling import ColumnScaling
from leapray.data.transform import Transform
from leapray.models.directory import save_model
from leapray.models.emulator import Emulator
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.columns import CHANNELS, INPUTS, TARGETS

TINY = {
    "climatology": {},
    "ridge": {},
    "linear": {},
    "mlp": {"hidden": [16], "confidence": True},
    "low-res-aqua": {"encoder": [8], "lstm_hidden": 4, "lstm_layers": 1, "gru_hidden": 2, "head": [8], "confidence": True},
    "low-res-high-res": {"embedding": 4, "hidden": 4, "layers": 1, "head": 8, "confidence": True},
}
FLUX = slice(TARGETS[FLUXES[0].name].start, TARGETS.width)
WATER = slice(INPUTS["state_q0001"].start, INPUTS["state_q0003"].stop)


def low_res(clip: float = 30.0) -> Transform:
    """Scaling by the recorded statistics of low-res."""
    table = {key: np.array(figures("low_res_columns")[key], dtype=np.float64) for key in ("mean", "std")}

    def scaling(columns: slice, clip: float) -> ColumnScaling:
        mean, std = (torch.from_numpy(table[key][columns]) for key in ("mean", "std"))
        # what is left of the constant gases' deviation is rounding
        constant = ~(std > 1e-12 * mean.abs())
        return ColumnScaling(mean, std.masked_fill(constant, 1.0), constant, clip)

    return Transform(KAGGLE, scaling(slice(INPUTS.width), clip), scaling(slice(INPUTS.width, None), 0.0), "standard", {})


def raw(rows: int, seed: int = 0) -> torch.Tensor:
    """Flat columns spread around the means of low-res, water not negative."""
    rng = np.random.default_rng(seed)
    x = low_res(0.0).inputs.inverse(torch.from_numpy(2 * rng.normal(size=(rows, INPUTS.width))))
    x[:, WATER].abs_()
    return x


def saved(url: Path, name: str = "mlp", seed: int = 0, options: dict | None = None) -> str:
    torch.manual_seed(seed)
    choice = Choice(name=name, options=TINY[name] if options is None else options)
    save_model(str(url), build_network(choice.name, choice.options, CHANNELS).state_dict(), choice, low_res())
    return str(url)


def expected(emulator: Emulator, x: torch.Tensor) -> torch.Tensor:
    return emulator(x)


def torchscript(url: Path) -> torch.jit.ScriptModule:
    return torch.jit.load(str(url / "emulator.pt"))


def assert_equal_within_float32(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """By target, as a share of its spread."""
    spread = low_res().targets.scale.masked_fill(low_res().targets.constant, 0.0)
    assert ((found.double() - wanted).abs() <= 1e-5 * spread + 1e-6 * wanted.abs()).all()
