"""The coefficients of the hidden scheme, solved once on a fixed low-res sample so that tendencies have the published spread per level.

All kinds share them: they see other climates through the same physics. The wanted shapes of the attainable R2 follow the baselines of the
ClimSim paper (Yu et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from leapray.climsim.grid import figures
from leapray.climsim.schema import KAGGLE, LEVELS, STATE, STEP_SECONDS, TENDENCIES
from leapray.climsim.synthetic.climate import Climate, profile_figures
from leapray.climsim.synthetic.clouds import CloudScheme
from leapray.climsim.synthetic.column import TOP
from leapray.climsim.synthetic.mixing import MIXED
from leapray.climsim.synthetic.physics import NOISES, Coefficients, SubGrid, SubGridNoise, step_physics
from leapray.climsim.synthetic.place import make_place
from leapray.climsim.synthetic.thermo import saturation

_SEED = 20231204
_COLUMNS, _STEPS, _ROUNDS = 128, 12, 7
_STRATOSPHERE, _BALANCED = 16, 24
"""Above the first of these levels ozone gives the spread of the heating, above the second well-mixed gases give its mean."""


_DEEP = slice(28, 40)
"""Levels whose heating is mostly the plume's, which sets its strength."""


def _shape(*knots: tuple[int, float]) -> np.ndarray:
    """``(60,)`` interpolated between (level, value) pairs."""
    levels, values = zip(*knots, strict=True)
    return np.interp(np.arange(LEVELS), levels, values)


_ATTAINABLE = {
    "ptend_t": _shape((15, 0.97), (19, 0.6), (23, 0.8), (30, 0.92), (40, 0.85), (51, 0.62), (55, 0.75), (59, 0.9)),
    "ptend_q0001": _shape((12, 0.6), (20, 0.7), (28, 0.9), (38, 0.75), (50, 0.48), (55, 0.55), (59, 0.7)),
    "ptend_q0002": _shape((28, 0.5), (40, 0.6), (50, 0.6), (59, 0.65)),
    "ptend_q0003": _shape((12, 0.45), (20, 0.5), (35, 0.65), (59, 0.6)),
    "ptend_u": _shape((12, 0.6), (19, 0.65), (30, 0.8), (45, 0.7), (52, 0.65), (59, 0.85)),
}
_CLEAR = _shape((15, 0.99), (18, 0.87), (20, 0.77), (25, 0.6), (36, 0.56), (42, 0.46), (49, 0.28), (53, 0.35), (59, 0.85))
"""Share of air that holds no cloud after a step, as real low-res pairs have it."""
_STEERED = {"static": "ptend_t", "water": "ptend_q0001", "wind": "ptend_u", "growth": "ptend_q0002", "loss": "ptend_q0003"}
"""The target whose attainable R2 each noise is solved for."""


@lru_cache
def coefficients() -> Coefficients:
    """The calibrated coefficients; a fixed point of a few rounds over the sample, about two seconds the first time."""
    inputs, draws = _sample()
    state = _first_guess(inputs)
    for _ in range(_ROUNDS):
        state = _correct(state, _respond(inputs, state, draws))
    return state


@dataclass(frozen=True)
class _Response:
    """What the scheme does with its present coefficients, per level ``(60,)`` by target.

    Mean and std of a tendency, the share of its variance that the sub-grid part takes, and the ratio of the published std to the present.
    """

    mean: dict[str, np.ndarray]
    std: dict[str, np.ndarray]
    lost: dict[str, np.ndarray]
    wider: dict[str, np.ndarray]


def _respond(inputs: dict[str, np.ndarray], state: Coefficients, draws: list[SubGrid]) -> _Response:
    outputs = [step_physics(inputs, state, draw)[0] for draw in draws]
    response = _Response({}, {}, {}, {})
    for variable, target in zip(STATE, TENDENCIES, strict=True):
        one, other = ((output[variable.name] - inputs[variable.name]) / STEP_SECONDS for output in outputs)
        std = np.sqrt((one.var(axis=1) + other.var(axis=1)) / 2) + 1e-150
        response.mean[target.name] = (one.mean(axis=1) + other.mean(axis=1)) / 2
        response.std[target.name] = std
        response.lost[target.name] = np.mean((one - other) ** 2, axis=1) / 2 / std**2
        response.wider[target.name] = np.clip(_published(target.name, "std") / std, 0.3, 3.0)
    return response


def _sample() -> tuple[dict[str, np.ndarray], list[SubGrid]]:
    """Inputs of steps across the year side by side, with two independent draws of the sub-grid part."""
    place = make_place("low-res", _COLUMNS)
    climate = Climate("low-res", place, _SEED)
    steps = range(5, _STEPS * 2179, 2179)
    states = [climate.at(step) for step in steps]
    inputs = {name: np.concatenate([state[name] for state in states], axis=-1) for name in states[0]}
    draws = []
    for realization in range(2):
        noise = SubGridNoise(place.points, _SEED, realization)
        draws.append(SubGrid.join([noise.at(step) for step in steps]))
    return inputs, draws


def _first_guess(inputs: dict[str, np.ndarray]) -> Coefficients:
    pressure = np.array(figures("levels")["lev_hPa"], dtype=np.float64) / 1000.0
    cloud = profile_figures("low-res", "state_q0002").mean + profile_figures("low-res", "state_q0003").mean
    return Coefficients(
        ozone_absorption=np.where(np.arange(LEVELS) < _STRATOSPHERE, 1000.0, 40.0),
        well_mixed=2.5e-3 * np.minimum(1.0, 0.05 + pressure / 0.01),
        clouds=CloudScheme(mean=cloud, typical=cloud, rate=np.full(LEVELS, 0.3), critical=_critical_humidity(inputs)),
        convection=1e-5,
        exchange={name: np.full(LEVELS, 0.02) for name in MIXED},
        noise={name: np.full(LEVELS, 0.4) for name in NOISES},
    )


def _critical_humidity(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The relative humidity ``(60,)`` below which the wanted share of air is clear; near saturation aloft, where clouds are too rare."""
    humidity = inputs["state_q0001"] / saturation(inputs["state_t"], inputs["state_pmid"])
    critical = np.array([np.quantile(values, share) for values, share in zip(humidity, _CLEAR, strict=True)])
    return np.where(np.arange(LEVELS) < _STRATOSPHERE, 0.95, np.minimum(critical, 0.95))


def _correct(state: Coefficients, response: _Response) -> Coefficients:
    """One round: every coefficient moves by the ratio of the wanted to the present spread, or attainable R2, of its target."""
    exchange = {
        group: _smooth(np.clip(state.exchange[group] * _between(response.wider[_STEERED[group]]) ** 0.8, 1e-7, 5.0))
        for group in ("static", "water", "wind")
    }
    noise = {}
    for name, target in _STEERED.items():
        ratio = np.clip((1 - _ATTAINABLE[target]) / np.maximum(response.lost[target], 1e-6), 0.25, 4.0)
        ratio = _between(ratio) if name in MIXED else ratio
        noise[name] = _smooth(np.clip(state.noise[name] * ratio**0.4, 0.05, 1.2))
    ozone_absorption, well_mixed = _correct_radiation(state, response)
    return Coefficients(
        ozone_absorption=ozone_absorption,
        well_mixed=well_mixed,
        clouds=_correct_clouds(state.clouds, response),
        convection=state.convection * float(np.exp(np.log(response.wider["ptend_t"][_DEEP]).mean())),
        exchange=exchange | {"cloud": exchange["water"]},
        noise=state.noise | noise,
    )


def _correct_radiation(state: Coefficients, response: _Response) -> tuple[np.ndarray, np.ndarray]:
    """Ozone absorption and well-mixed gases, from the spread and the mean of the heating aloft."""
    level = np.arange(LEVELS)
    ozone = np.clip(state.ozone_absorption * response.wider["ptend_t"], 20.0, 2e4)
    surplus = (response.mean["ptend_t"] - _published("ptend_t", "mean")) / _published("ptend_t", "std")
    well_mixed = np.clip(state.well_mixed * np.exp(np.clip(surplus, -0.5, 0.5)), 1e-5, 1e-2)
    return np.where(level < _STRATOSPHERE, ozone, state.ozone_absorption), np.where(level < _BALANCED, well_mixed, state.well_mixed)


def _correct_clouds(clouds: CloudScheme, response: _Response) -> CloudScheme:
    """The amount at which clouds neither grow nor shrink on average, and the speed that gives their change its spread."""
    liquid, ice = "ptend_q0002", "ptend_q0003"
    present = np.hypot(response.std[liquid], response.std[ice])
    shrinking = -(response.mean[liquid] + response.mean[ice]) / present
    typical = np.clip(clouds.typical * np.exp(np.clip(2.0 * shrinking, -0.7, 0.7)), 0.05 * clouds.mean, 20.0 * clouds.mean)
    wanted = np.hypot(_published(liquid, "std"), _published(ice, "std"))
    rate = np.clip(clouds.rate * np.clip(wanted / present, 0.4, 2.5) ** 0.8, 0.01, 1.0)
    active, seen = np.arange(LEVELS) >= TOP, np.maximum(np.arange(LEVELS), _BALANCED)
    return replace(clouds, typical=np.where(active, typical, clouds.typical), rate=np.where(active, _smooth(rate[seen]), clouds.rate))


def _between(ratio: np.ndarray) -> np.ndarray:
    """Geometric mean over the two layers that an interface moves."""
    return np.sqrt(ratio * np.append(ratio[1:], ratio[-1]))


def _smooth(coefficient: np.ndarray) -> np.ndarray:
    """Even out a positive coefficient between neighbouring levels, so that one scheme acts on all of them."""
    logarithm = np.log(np.pad(coefficient, 1, mode="edge"))
    return np.exp(0.25 * logarithm[:-2] + 0.5 * logarithm[1:-1] + 0.25 * logarithm[2:])


def _published(name: str, moment: str) -> np.ndarray:
    targets = figures("low_res_columns")[moment][KAGGLE.raw.width :]
    return np.array(targets[KAGGLE.targets[name]], dtype=np.float64)
