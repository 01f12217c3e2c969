"""Evaluations of seeded random predictions, shaped as those of emulators are: temperature easy aloft, water hard near the ground."""

from typing import Any

import numpy as np

from leapray.climsim.grid import figures, low_res_grid, pressure
from leapray.evaluation.intervals import TimedMoments
from leapray.evaluation.results import ClimSim, Evaluation, Joint, Precipitation, Zonal
from tests.columns import ABLATED, EXACT, LEARNED, TARGETS
from tests.target_statistics import statistics_of

_BINS = 40
_MM_PER_DAY = 1e3 * 86400


def true_r2(skill: float) -> np.ndarray:
    """R2 that a prediction of this skill has in every column, before sampling ``(368,)``."""
    level = np.linspace(0, 1, 60)
    dip = 0.5 * np.exp(-(((level - 0.32) / 0.03) ** 2)) + 0.45 * np.exp(-(((level - 0.85) / 0.06) ** 2))
    temperature = 0.99 - 0.1 * level - dip
    water = 0.9 - 0.5 * level**2 - 0.3 * np.exp(-(((level - 0.3) / 0.05) ** 2))
    profiles = [temperature, water, water - 0.25, water - 0.3, water - 0.15, water - 0.2]
    scalars = [0.98, 0.92, 0.75, 0.7, 0.96, 0.95, 0.95, 0.87]
    return np.clip(1 - (1 - np.concatenate([*profiles, scalars])) * (2 - skill), -0.9, 0.999)


def made_rows(skill: float, days: int = 12, seed: int = 0, bias: float = 0.05) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Days ``(n,)``, truth and prediction ``(n, 368)`` of one step a day on the low-res grid; the truth does not depend on the skill."""
    table = figures("low_res_columns")
    targets = [index for index, kind in enumerate(table["kind"]) if kind == "target"]
    mean, std = (np.array([float(table[key][index] or 0) for index in targets]) for key in ("mean", "std"))
    grid = low_res_grid()
    rows = days * len(grid.latitude)
    weather, error = np.random.default_rng(1), np.random.default_rng(seed + 2)
    truth = weather.normal(size=(rows, TARGETS.width)) + np.tile(np.cos(np.radians(grid.latitude)), days)[:, None]
    noise = error.normal(size=truth.shape) * np.sqrt((1 - true_r2(skill)) * truth.var(axis=0))
    prediction = truth + noise + bias * np.tile(np.sin(np.radians(grid.latitude) * 2), days)[:, None] + bias
    truth, prediction = mean + std * truth, mean + std * prediction
    rain = TARGETS.mask([])
    for name in ("cam_out_PRECSC", "cam_out_PRECC"):
        rain[TARGETS[name]] = True
    for values in (truth, prediction):
        values[:, ABLATED] = 0
        values[:, rain] = mean[rain] * np.exp(0.8 * (values[:, rain] - mean[rain]) / std[rain] - 1)
    prediction[:, EXACT] = truth[:, EXACT]
    return np.repeat(np.arange(days), len(grid.latitude)), truth, prediction


def made_evaluation(
    name: str = "ours", skill: float = 1.0, *, days: int = 12, seed: int = 0, parts: bool = True, **changes: Any
) -> Evaluation:
    """An evaluation of made rows, with all its parts or only what every evaluation has."""
    day, truth, prediction = made_rows(skill, days, seed)
    moments = TimedMoments(statistics_of(truth))
    moments.update(day, truth, prediction)
    error = prediction - truth
    made: dict[str, Any] = {"mean": truth.mean(axis=0), "bias": error.mean(axis=0), "mae": np.abs(error).mean(axis=0)}
    if parts:
        made |= {
            "joint": _joint(truth, prediction),
            "precipitation": _precipitation(truth, prediction),
            "climsim": _climsim(truth, prediction, days),
            "zonal": _zonal(truth, prediction, days),
            "crps": 0.7 * made["mae"],
        }
    return Evaluation(**({"name": name, "rows": len(day), "timed": True, "moments": moments} | made | changes))


def _joint(truth: np.ndarray, prediction: np.ndarray) -> Joint:
    edges, counts = [], []
    for scalar in TARGETS.scalars:
        y, f = truth[:, TARGETS[scalar.name]][:, 0], prediction[:, TARGETS[scalar.name]][:, 0]
        bounds = np.linspace(y.min(), y.max(), _BINS + 1)
        if "PREC" in scalar.name:
            bounds = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, _BINS)]) / _MM_PER_DAY
        edges.append(bounds)
        counts.append(np.histogram2d(np.clip(y, bounds[0], bounds[-1]), np.clip(f, bounds[0], bounds[-1]), bins=(bounds, bounds))[0])
    return Joint(np.array(edges), np.array(counts))


def _precipitation(truth: np.ndarray, prediction: np.ndarray) -> Precipitation:
    edges = np.concatenate([[0.0], np.geomspace(0.01, 500, 31)])
    rain, rained = (values[:, TARGETS["cam_out_PRECC"]][:, 0] * _MM_PER_DAY for values in (truth, prediction))
    middles = np.sqrt(np.maximum(edges[:-1], 0.005) * edges[1:])
    moistening = np.stack([2 - 0.8 * middles, 2.2 - 0.7 * middles], axis=1)
    return Precipitation(edges, np.histogram(rain, edges)[0], np.histogram(np.clip(rained, 0, 499), edges)[0], moistening)


def _climsim(truth: np.ndarray, prediction: np.ndarray, days: int) -> ClimSim:
    y, f = (values.reshape(days, -1, TARGETS.width) for values in (truth, prediction))
    spread = np.square(y - y.mean(axis=0)).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(spread > 0, 1 - np.square(y - f).sum(axis=0) / spread, np.nan).mean(axis=0)
    energy = 1.0
    bias = (f - y).mean(axis=(0, 1))
    rmse = np.sqrt(np.square(f - y).mean(axis=0)).mean(axis=0)
    mae = energy * np.abs(f - y).mean(axis=(0, 1))
    return ClimSim(mae, energy * rmse, r2, energy * bias, 0.7 * mae)


def _zonal(truth: np.ndarray, prediction: np.ndarray, days: int) -> Zonal:
    grid, edges = low_res_grid(), np.linspace(-90, 90, 19)
    band = np.digitize(grid.latitude, edges) - 1
    y, f = (values.reshape(days, -1, TARGETS.width) for values in (truth, prediction))
    r2, mean, bias = (np.full((len(edges) - 1, TARGETS.width), np.nan) for _ in range(3))
    midway = np.cos(np.radians((edges[:-1] + edges[1:]) / 2))
    depth = np.concatenate([np.tile(pressure(np.array([1e5]))[0] / 1e5, 6), np.ones(8)])
    for z in np.unique(band):
        here = band == z
        mean[z], bias[z] = y[:, here].mean(axis=(0, 1)), (f - y)[:, here].mean(axis=(0, 1))
        r2[z] = np.where(LEARNED, np.clip(true_r2(1.0) + 0.4 * (midway[z] - 0.6) * depth, -0.5, 1), np.nan)
    return Zonal(edges, r2, mean, bias)
