"""What a sample of rows says about itself: missing values, known ranges and units, and the identities of a model step.

Shapes: n rows, i raw inputs, t targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

from leapray.climsim.grid import competition_columns, figures, layer_mass
from leapray.climsim.schema import KAGGLE, STEP_SECONDS, UNREAL, WATER, Variable

_INPUTS, _TARGETS = KAGGLE.raw, KAGGLE.targets
"""The columns that are judged: those of the competition, which all kinds of files share."""
_FRACTIONS = ("cam_in_ICEFRAC", "cam_in_LANDFRAC", "cam_in_OCNFRAC")
_WATER = 1000.0
"""Density of liquid water in kg/m3, by which precipitation in m/s becomes kg/m2/s."""
_ABLATED_NOISE = 1e-12
_ROUNDING = 1e-9
_FRACTION_TOLERANCE = 1e-3
_BUDGET_TOLERANCE, _BUDGET_BROKEN = 0.1, 0.5
_WIDENED = 0.5
_FEW = 0.01

_CONVERSIONS = {
    "Pa": {"hPa": (100.0, 0.0)},
    "K": {"degrees Celsius": (1.0, 273.15)},
    "kg/kg": {"g/kg": (1e-3, 0.0)},
    "m/s": {"mm/day": (1e-3 / 86400, 0.0), "mm/s": (1e-3, 0.0)},
    "mol/mol": {"ppm": (1e-6, 0.0), "ppb": (1e-9, 0.0)},
    "W/m2": {"J/m2 of a step": (1 / STEP_SECONDS, 0.0)},
}
"""By unit: what values in another one must be multiplied by and then added to."""


class Verdict(Enum):
    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, in plain words."""

    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Sample:
    """Rows of one kind: float64 inputs ``(n, i)`` and targets ``(n, t)``, or ``(n, 0)`` where there are none."""

    kind: str
    inputs: np.ndarray
    targets: np.ndarray

    def input(self, name: str) -> np.ndarray:
        """A scalar ``(n,)`` or a profile ``(n, levels)``."""
        return _named(self.inputs[:, _INPUTS[name]])

    def target(self, name: str) -> np.ndarray:
        return _named(self.targets[:, _TARGETS[name]])


def _named(values: np.ndarray) -> np.ndarray:
    return values[:, 0] if values.shape[1] == 1 else values


def judge(sample: Sample) -> Iterator[Finding]:
    """Everything that can be said of a sample; identities and ranges leave out the rows that hold missing values."""
    values = np.hstack([sample.inputs, sample.targets])
    usable = np.isfinite(values) & (np.abs(values) < UNREAL)
    yield _missing(values, usable)
    whole = usable.all(axis=1)
    if not whole.any():
        yield Finding(Verdict.WRONG, "no row is without missing values, so that neither ranges nor identities can be looked at")
        return
    sample = Sample(sample.kind, sample.inputs[whole], sample.targets[whole])
    yield from _ranges(sample, values[whole])
    yield from (_moisture(sample), _fractions(sample))
    if sample.targets.shape[1]:
        yield from (_ablated(sample), _exact(sample), _water(sample), _momentum(sample))


def _missing(values: np.ndarray, usable: np.ndarray) -> Finding:
    counts = (~usable).sum(axis=0)
    if not counts.any():
        return Finding(Verdict.OK, f"no NaN, Inf or fill value in {len(values)} rows")
    nan, inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    named = _some([f"{column} ({count})" for column, count in zip(np.array(KAGGLE.columns)[counts > 0], counts[counts > 0], strict=True)])
    return Finding(Verdict.WRONG, f"{nan} NaN, {inf} Inf and {int(counts.sum()) - nan - inf} fill values in column {named}")


def _ranges(sample: Sample, values: np.ndarray) -> Iterator[Finding]:
    """Variables that mostly lie outside what was ever recorded are wrong; a few values outside are only noted."""
    low, high = known_range(sample.kind)
    margin = _WIDENED * (high - low)
    margin[margin < _ROUNDING * np.abs(high)] = np.inf
    # the exact and the ablated targets are judged by their identities
    margin[_INPUTS.width :][_TARGETS.exact | _TARGETS.zero] = np.inf
    low, high, margin = (bound[: values.shape[1]] for bound in (low, high, margin))
    outside = (values < low - margin) | (values > high + margin)
    strange = 0
    for layout, first in ((_INPUTS, 0), (_TARGETS, _INPUTS.width))[: 1 + bool(sample.targets.shape[1])]:
        for variable in layout.variables:
            columns = slice(first + layout[variable.name].start, first + layout[variable.name].stop)
            counts = outside[:, columns].sum(axis=0)
            if not counts.any():
                continue
            strange += 1
            at = columns.start + int(np.argmax(counts))
            found, known = _span(values[:, at]), f"{low[at]:.4g} to {high[at]:.4g}{_unit(variable)}"
            told = f"{np.array(KAGGLE.columns)[at]} lies between {found}, known are {known}"
            if counts.max() > len(values) / 2:
                unit = _other_unit(variable, values[:, columns], low[columns], high[columns])
                yield Finding(Verdict.WRONG, told + (f"; it looks like {unit}" if unit else ""))
            else:
                yield Finding(Verdict.NOTE, f"{told} ({int(counts.sum())} values of {variable.name} lie well outside)")
    if not strange:
        yield Finding(Verdict.OK, "every column lies within the known range")


def known_range(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest recorded value of every column, inputs and then targets, each ``(c,)``; NaN where none is published.

    High-res: ClimSim's ``dataset_statistics``. Else targets are those of the competition's ``train.csv``; inputs are the wider of that and
    of ClimSim's published statistics of all low-res files, where ``state_t_0`` reaches 1321 K.
    """
    table = figures("high_res_columns" if kind == "high-res" else "low_res_columns")
    low, high = (np.array([float(text or "nan") for text in table[name]]) for name in ("min", "max"))
    if kind != "high-res":
        inputs, targets = competition_columns(_INPUTS), competition_columns(_TARGETS)
        low = np.append(np.minimum(low[: _INPUTS.width], inputs.minimum), targets.minimum)
        high = np.append(np.maximum(high[: _INPUTS.width], inputs.maximum), targets.maximum)
    return low, high


def _unit(variable: Variable) -> str:
    return "" if variable.units == "1" else f" {variable.units}"


def _span(values: np.ndarray) -> str:
    return f"{values.min():.4g} and {values.max():.4g}"


def _other_unit(variable: Variable, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> str | None:
    """The unit in which the medians of a variable would be where they should."""
    median, margin = np.median(values, axis=0), _WIDENED * (high - low)
    for unit, (factor, offset) in _CONVERSIONS.get(variable.units, {}).items():
        inside = (median * factor + offset >= low - margin) & (median * factor + offset <= high + margin)
        if inside.mean() > _WIDENED:
            return f"{unit}, expected {variable.units}"
    return None


def _ablated(sample: Sample) -> Finding:
    bad = (np.abs(sample.targets[:, _TARGETS.zero]) > _ABLATED_NOISE).sum(axis=0)
    return _counted(bad, np.array(_TARGETS.columns)[_TARGETS.zero], len(sample.targets), "the ablated targets are 0")


def _exact(sample: Sample) -> Finding:
    expected, found = -sample.inputs[:, KAGGLE.exact_source] / STEP_SECONDS, sample.targets[:, _TARGETS.exact]
    bad = (np.abs(found - expected) > _ROUNDING * np.abs(expected)).sum(axis=0)
    if sample.kind == "high-res":
        # in ClimSim's high-res statistics the ratio of means is 0.99974 there
        bad[-1] = 0
    at = np.flatnonzero(_TARGETS.exact) - _TARGETS["ptend_q0002"].start
    levels = f"{at[0]} to {at[-1]}"
    return _counted(
        bad, np.array(_TARGETS.columns)[_TARGETS.exact], len(found), f"ptend_q0002 is -state_q0002/{STEP_SECONDS} on levels {levels}"
    )


def _moisture(sample: Sample) -> Finding:
    columns = np.concatenate([np.arange(_INPUTS.width)[_INPUTS[f"state_{name}"]] for name in WATER])
    negative = sample.inputs[:, columns] < 0
    return _counted(negative.sum(axis=0), np.array(_INPUTS.columns)[columns], len(negative), "no humidity or cloud water is negative")


def _fractions(sample: Sample) -> Finding:
    total = sum(sample.input(name) for name in _FRACTIONS)
    bad = np.array([(np.abs(total - 1) > _FRACTION_TOLERANCE).sum()])
    return _counted(bad, np.array([" + ".join(_FRACTIONS)]), len(sample.inputs), "the fractions of ice, land and ocean sum to 1")


def _counted(bad: np.ndarray, columns: np.ndarray, rows: int, rule: str) -> Finding:
    """A rule that holds in every row, in nearly every row, or not."""
    if not bad.any():
        return Finding(Verdict.OK, rule)
    verdict = Verdict.NOTE if bad.max() <= _FEW * rows else Verdict.WRONG
    named = _some([f"{column} ({count} of {rows} rows)" for column, count in zip(columns[bad > 0], bad[bad > 0], strict=True)])
    return Finding(verdict, f"expected that {rule}, which fails in {named}")


def _water(sample: Sample) -> Finding:
    """Water lost by the column is the precipitation: ``sum(d(q1 + q2 + q3)/dt dp/g) = -1000 PRECC``, of the mean over all rows."""
    mass = layer_mass(sample.input("state_ps"))
    gained = float(sum((sample.target(f"ptend_{name}") * mass).sum(axis=1) for name in WATER).mean())
    rain = _WATER * float(sample.target("cam_out_PRECC").mean())
    told = f"columns gain {gained:.3g} kg/m2/s of water, precipitation takes {rain:.3g}"
    off = abs(gained + rain) - _ABLATED_NOISE
    verdict = Verdict.OK if off <= _BUDGET_TOLERANCE * abs(rain) else Verdict.NOTE if off <= _BUDGET_BROKEN * abs(rain) else Verdict.WRONG
    return Finding(verdict, told)


def _momentum(sample: Sample) -> Finding:
    """Mixing moves momentum within a column and adds none: the net change is far below what is moved."""
    mass = layer_mass(sample.input("state_ps"))
    names = [tendency.name for tendency in _TARGETS.profiles if tendency.units == "m/s/s"]
    net = max(abs(float((sample.target(name) * mass).sum(axis=1).mean())) for name in names)
    moved = max(float(np.abs(sample.target(name) * mass).sum(axis=1).mean()) for name in names)
    told = f"columns gain {net:.2g} N/m2 of momentum net, of {moved:.2g} that is moved"
    return Finding(Verdict.OK if net <= _BUDGET_TOLERANCE * moved + _ABLATED_NOISE else Verdict.NOTE, told)


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
