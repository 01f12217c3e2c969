"""ClimSim's own metrics (Yu et al. 2023): errors of energy fluxes over time in each column of the grid, then over columns.

Truth and prediction are first multiplied by mass ``dp / g`` (tendencies of temperature and water), by ``area / mean(area)`` and by an
energy factor. Two things differ from the official code (``climsim_utils/data_utils.py``). It also weights winds, by mass, area and the
speed ``sqrt(u_t^2 + v_t^2)`` of the array itself; here they stay unweighted. It averages R2 over all grid columns, and so gives -inf where
one is constant over time; here R2 is over the grid columns that vary, and NaN where fewer than half do.

Shapes: t targets, l levels, n rows, g grid columns.
"""

from __future__ import annotations

import numpy as np

from leapray.climsim.grid import REFERENCE_PRESSURE, competition_columns, layer_mass
from leapray.climsim.schema import Targets, Variable
from leapray.evaluation.results import ClimSim
from leapray.evaluation.rowruns import RowRuns

HEAT_CAPACITY = 1004.64
"""Of dry air, J/(kg K)."""
LATENT_HEAT = 2.501e6
"""Of vaporisation, J/kg; ClimSim takes it for ice too."""
WATER_DENSITY = 1000.0
"""kg/m3."""
_WINDS = ("ptend_u", "ptend_v")
_FACTORS = {"ptend_t": HEAT_CAPACITY, **dict.fromkeys(("ptend_q0001", "ptend_q0002", "ptend_q0003"), LATENT_HEAT)} | dict.fromkeys(
    ("cam_out_PRECSC", "cam_out_PRECC"), LATENT_HEAT * WATER_DENSITY
)
VARYING = 1e-3
"""Share of the variance in the competition's training set, place and time pooled, from which a grid column varies over time."""
TOLD = 0.5
"""Share of the grid columns that must vary for an R2."""


def unit(variable: Variable) -> str:
    """Unit of the metrics of a target variable, R2 aside."""
    return variable.units if variable.name in _WINDS else "W/m2"


def _massive(targets: Targets) -> list[str]:
    """The tendencies that a mass carries: of temperature and water."""
    return [variable.name for variable in targets.profiles if variable.name not in _WINDS]


def energy_factors(targets: Targets) -> np.ndarray:
    """Factor ``(t,)`` of every target: J/kg/K or J/kg of what its mass carries, 1 for fluxes of energy and for winds."""
    return np.concatenate([np.full(variable.levels, _FACTORS.get(variable.name, 1.0)) for variable in targets.variables])


def horizontal_weights(targets: Targets, area: np.ndarray) -> np.ndarray:
    """``area / mean(area)`` of each column for every target ``(t, g)``, 1 for winds."""
    weights = np.tile(area / area.mean(), (targets.width, 1))
    weights[targets.mask(name for name in _WINDS if name in targets)] = 1.0
    return weights


def times_mass(targets: Targets, values: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Values ``(t, n)``, those of temperature and water times the mass of their layers ``(l, n)`` in kg/m2."""
    weighted = values.copy()
    for name in _massive(targets):
        weighted[targets[name]] *= mass
    return weighted


class TruthByColumn:
    """Streaming moments of the truth, weighted by mass, in each of ``columns`` grid columns: ``mean`` and ``deviation (t, g)``.

    Merged about the means (Chan et al. 1983).
    """

    def __init__(self, targets: Targets, columns: int) -> None:
        self.targets = targets
        self.count = np.zeros(columns)
        self.mean, self.deviation = np.zeros((2, targets.width, columns))

    def update(self, groups: RowRuns, weighted: np.ndarray) -> None:
        """Take in weighted truth ``(t, n)`` of rows of the grid columns ``groups``."""
        at, count = groups.keys, self.count[groups.keys] + groups.counts
        mean = groups.sums(weighted) / groups.counts
        deviation = groups.sums(np.square(weighted - groups.spread(mean)))
        shift = mean - self.mean[:, at]
        self.deviation[:, at] += deviation + np.square(shift) * (self.count[at] * groups.counts / count)
        self.mean[:, at] += shift * (groups.counts / count)
        self.count[at] = count

    def varies(self) -> np.ndarray:
        """Boolean ``(t, g)``: whether a column's truth has at least ``VARYING`` of the variance in the competition's training set."""
        mass = layer_mass(np.array([REFERENCE_PRESSURE])).T
        std = times_mass(self.targets, competition_columns(self.targets).std[:, None], mass)
        least = VARYING * np.square(std)
        return (self.deviation >= self.count * least) & (self.deviation > 0)


class ErrorByColumn:
    """Sums of errors ``(t, g)``, prediction less truth weighted by mass: as they are, magnitudes, squares, and of the CRPS."""

    def __init__(self, targets: Targets, columns: int) -> None:
        self.signed, self.absolute, self.squared = np.zeros((3, targets.width, columns))
        self.crps: np.ndarray | None = None

    def update(self, groups: RowRuns, weighted: np.ndarray) -> None:
        """Take in weighted errors ``(t, n)`` of rows of the grid columns ``groups``."""
        at = groups.keys
        self.signed[:, at] += groups.sums(weighted)
        self.absolute[:, at] += groups.sums(np.abs(weighted))
        self.squared[:, at] += groups.sums(np.square(weighted))

    def update_crps(self, groups: RowRuns, weighted: np.ndarray) -> None:
        """Take in the weighted CRPS ``(t, n)`` of rows of the grid columns ``groups``."""
        if self.crps is None:
            self.crps = np.zeros_like(self.signed)
        self.crps[:, groups.keys] += groups.sums(weighted)


def climsim(truth: TruthByColumn, error: ErrorByColumn, area: np.ndarray) -> ClimSim:
    """The metrics of what was taken in, over the columns that were met; ``area (g,)`` is of the whole grid."""
    met = truth.count > 0
    scale = (energy_factors(truth.targets)[:, None] * horizontal_weights(truth.targets, area))[:, met]
    count = truth.count[met]
    varies = truth.varies()[:, met]
    explained = np.where(varies, 1.0 - error.squared[:, met] / np.where(varies, truth.deviation[:, met], 1.0), 0.0)
    told = varies.mean(axis=1) >= TOLD
    return ClimSim(
        mae=(scale * error.absolute[:, met] / count).mean(axis=1),
        rmse=(scale * np.sqrt(error.squared[:, met] / count)).mean(axis=1),
        r2=np.where(told, explained.sum(axis=1) / np.maximum(varies.sum(axis=1), 1), np.nan),
        bias=(scale * error.signed[:, met] / count).mean(axis=1),
        crps=None if error.crps is None else (scale * error.crps[:, met] / count).mean(axis=1),
    )


def column_moistening(targets: Targets, values: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Tendency of a column's water in all phases, kg/m2/s ``(n,)``: values of the targets ``(t, n)``, layer mass ``(l, n)``."""
    water = np.stack([values[targets[name]] for name in targets.water])
    moistening: np.ndarray = np.einsum("skn,kn->n", water, mass)
    return moistening
