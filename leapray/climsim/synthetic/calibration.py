"""The coefficients of the hidden scheme, solved once on a fixed low-res sample so that tendencies have the published spread per level.

All kinds share them: they see other climates through the same physics. Target shapes of the attainable R2 are those of FACTS section 6.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from leapray.climsim.grid import figures
from leapray.climsim.schema import INPUTS, LEVELS, STATE, STEP_SECONDS, TARGETS, TENDENCIES
from leapray.climsim.synthetic.climate import Climate, profile_figures
from leapray.climsim.synthetic.clouds import CloudScheme
from leapray.climsim.synthetic.column import TOP
from leapray.climsim.synthetic.physics import MIXED, NOISES, Coefficients, SubGrid, SubGridNoise, step_physics
from leapray.climsim.synthetic.place import make_place

_SEED = 20231204
_COLUMNS, _STEPS, _ROUNDS = 128, 12, 8
_STRATOSPHERE, _BALANCED = 16, 24
"""Above the first of these levels ozone gives the spread of the heating, above the second well-mixed gases give its mean."""


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
_STEERED = {"static": "ptend_t", "water": "ptend_q0001", "wind": "ptend_u", "growth": "ptend_q0002", "loss": "ptend_q0003"}
"""The target whose attainable R2 each noise is solved for."""


@lru_cache
def coefficients() -> Coefficients:
    """The calibrated coefficients; a fixed point of a few rounds over the sample, about a second the first time."""
    inputs, draws = _sample()
    state = _first_guess()
    for _ in range(_ROUNDS):
        tendencies, rain = [], []
        for draw in draws:
            outputs, _budget = step_physics(inputs, state, draw)
            rain.append(outputs["cam_out_PRECC"].mean())
            tendencies.append(
                {target.name: (outputs[v.name] - inputs[v.name]) / STEP_SECONDS for v, target in zip(STATE, TENDENCIES, strict=True)}
            )
        state = _correct(state, *tendencies)
        wetter = _published("cam_out_PRECC", "mean")[0] / np.mean(rain)
        state = replace(state, convection=state.convection * float(np.clip(wetter, 0.4, 2.5)) ** 0.8)
    return state


def _sample() -> tuple[dict[str, np.ndarray], list[SubGrid]]:
    """Inputs of steps across the year side by side, with two independent draws of the sub-grid part."""
    place = make_place("low-res", _COLUMNS)
    climate = Climate("low-res", place, _SEED)
    steps = range(5, _STEPS * 2203, 2203)
    states = [climate.at(step) for step in steps]
    inputs = {name: np.concatenate([state[name] for state in states], axis=-1) for name in states[0]}
    draws = []
    for realization in range(2):
        noise = SubGridNoise(place.points, _SEED, realization)
        draws.append(SubGrid.join([noise.at(step) for step in steps]))
    return inputs, draws


def _first_guess() -> Coefficients:
    pressure = np.array(figures("levels")["lev_hPa"], dtype=np.float64) / 1000.0
    cloud = profile_figures("low-res", "state_q0002").mean + profile_figures("low-res", "state_q0003").mean
    return Coefficients(
        ozone_absorption=np.where(np.arange(LEVELS) < _STRATOSPHERE, 1000.0, 40.0),
        well_mixed=2.5e-3 * np.minimum(1.0, 0.05 + pressure / 0.01),
        clouds=CloudScheme(mean=cloud, typical=cloud, rate=np.full(LEVELS, 0.3)),
        convection=2e-5,
        exchange={name: np.full(LEVELS, 0.02) for name in MIXED},
        noise={name: np.full(LEVELS, 0.4) for name in NOISES},
    )


def _correct(state: Coefficients, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> Coefficients:
    """One round: every coefficient moves by the ratio of the wanted to the present spread, or attainable R2, of its target."""
    published = {name: _published(name, "std") for name in one}
    variance = {name: (one[name].var(axis=1) + other[name].var(axis=1)) / 2 + 1e-300 for name in one}
    lost = {name: np.mean((one[name] - other[name]) ** 2, axis=1) / 2 / variance[name] for name in one}
    wider = {name: np.clip(published[name] / np.sqrt(variance[name]), 0.3, 3.0) for name in one}

    heating = (one["ptend_t"].mean(axis=1) + other["ptend_t"].mean(axis=1)) / 2
    surplus = (heating - _published("ptend_t", "mean")) / published["ptend_t"]
    balanced = np.arange(LEVELS) < _BALANCED
    aloft = np.arange(LEVELS) < _STRATOSPHERE
    exchange = {
        group: np.clip(state.exchange[group] * _between(wider[_STEERED[group]]) ** 0.8, 1e-7, 0.3) for group in ("static", "water", "wind")
    }
    noise = dict(state.noise)
    for name, target in _STEERED.items():
        wanted = 1 - _ATTAINABLE[target]
        ratio = np.clip(wanted / np.maximum(lost[target], 1e-6), 0.25, 4.0)
        ratio = _between(ratio) if name in MIXED else ratio
        noise[name] = np.clip(state.noise[name] * ratio**0.4, 0.05, 1.0)
    spread = np.sqrt(published["ptend_q0002"] ** 2 + published["ptend_q0003"] ** 2)[TOP:]
    present = np.sqrt(variance["ptend_q0002"] + variance["ptend_q0003"])[TOP:]
    drying = -sum(part[name].mean(axis=1) for part in (one, other) for name in ("ptend_q0002", "ptend_q0003"))[TOP:] / 2 / present
    typical, rate = state.clouds.typical.copy(), state.clouds.rate.copy()
    typical[TOP:] *= np.exp(np.clip(2.0 * drying, -0.7, 0.7))
    rate[TOP:] = np.clip(rate[TOP:] * np.clip(spread / present, 0.4, 2.5) ** 0.8, 0.01, 1.0)
    return replace(
        state,
        ozone_absorption=np.where(aloft, np.clip(state.ozone_absorption * wider["ptend_t"], 20.0, 2e4), state.ozone_absorption),
        well_mixed=np.where(balanced, np.clip(state.well_mixed * np.exp(np.clip(surplus, -0.5, 0.5)), 1e-5, 1e-2), state.well_mixed),
        clouds=CloudScheme(state.clouds.mean, typical, rate),
        exchange=exchange | {"cloud": exchange["water"]},
        noise=noise,
    )


def _between(ratio: np.ndarray) -> np.ndarray:
    """Geometric mean over the two layers that an interface moves."""
    return np.sqrt(ratio * np.append(ratio[1:], ratio[-1]))


def _published(name: str, moment: str) -> np.ndarray:
    targets = figures("low_res_columns")[moment][INPUTS.width :]
    return np.array(targets[TARGETS[name]], dtype=np.float64)
