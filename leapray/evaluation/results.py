"""What an evaluation found, as numbers: kept in ``evaluation.npz``, drawn by the report, compared with another.

Shapes: t targets in the order of their layout, s scalars, b bins, z = 10-degree bands of latitude from south to north.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from zipfile import BadZipFile

import numpy as np

from leapray import storage
from leapray.climsim.schema import Targets
from leapray.errors import UserError
from leapray.evaluation.intervals import TimedMoments

FILE = "evaluation.npz"


@dataclass(frozen=True)
class ClimSim:
    """ClimSim's own metrics of every target ``(t,)``: of energy fluxes in W/m2, weighted by mass and area.

    Each is taken over time in every column of the grid, then averaged over columns; ``r2`` is NaN where a column's truth is constant.
    Winds stay unweighted, in m/s2. ``crps``, weighted alike, is there for an ensemble.
    """

    mae: np.ndarray
    rmse: np.ndarray
    r2: np.ndarray
    bias: np.ndarray
    crps: np.ndarray | None = None

    def by_variable(self, targets: Targets) -> dict[str, dict[str, float]]:
        """Mean of each metric over the levels of each target variable, over those where it is told; NaN where it is told of none."""
        metrics = {metric.name: value for metric in fields(self) if (value := getattr(self, metric.name)) is not None}
        return {variable: {name: _mean(values[targets[variable]]) for name, values in metrics.items()} for variable in targets.names}


def _mean(values: np.ndarray) -> float:
    told = values[~np.isnan(values)]
    return float(told.mean()) if len(told) else float("nan")


@dataclass(frozen=True)
class Zonal:
    """Skill by band of latitude: of daily means over each band, area weighted.

    ``edges`` are latitudes in degrees ``(z + 1,)``; ``r2 (z, t)`` over days, NaN where nothing varies or no column lies; ``truth`` and
    ``bias (z, t)`` are means over time in physical units.
    """

    edges: np.ndarray
    r2: np.ndarray
    truth: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Joint:
    """How often truth and prediction of the scalars fall into each pair of bins: edges ``(s, b + 1)``, counts ``(s, b, b)``, truth first.

    What lies beyond an end is counted in the last bin there.
    """

    edges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Precipitation:
    """How often it rains how much: edges in mm/day ``(b + 1,)``, the first 0, and counts of truth and prediction ``(b,)``.

    ``moistening (b, 2)`` is the column's mean moisture tendency, truth and prediction in kg/m2/day, in each bin of true precipitation.
    """

    edges: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    moistening: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """One prediction beside the truth.

    ``moments`` are the competition's, by day; where rows tell no time all lie in block 0 and ``timed`` is False. ``mean (t,)``, ``bias``
    and ``mae`` are of truth, prediction less truth, and its magnitude, in physical units over all rows. ``crps (t,)`` is the fair
    ensemble score in physical units, where there are members. ``lacking`` says, in sentences, what could not be computed and why.
    """

    name: str
    rows: int
    timed: bool
    moments: TimedMoments
    mean: np.ndarray
    bias: np.ndarray
    mae: np.ndarray
    joint: Joint | None = None
    precipitation: Precipitation | None = None
    climsim: ClimSim | None = None
    zonal: Zonal | None = None
    crps: np.ndarray | None = None
    lacking: tuple[str, ...] = ()

    @property
    def targets(self) -> Targets:
        return self.moments.targets


_PARTS = {"joint": Joint, "precipitation": Precipitation, "climsim": ClimSim, "zonal": Zonal}


def write_evaluations(directory: str, evaluations: Sequence[Evaluation]) -> None:
    """Keep evaluations, the first of them the one that the others stand beside, in ``directory``."""
    arrays: dict[str, np.ndarray] = {"names": np.array([evaluation.name for evaluation in evaluations])}
    for index, evaluation in enumerate(evaluations):
        arrays |= {f"{index}.{key}": value for key, value in _arrays(evaluation).items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    storage.write_bytes(storage.join(directory, FILE), content.getvalue())


def read_evaluations(directory: str) -> list[Evaluation]:
    """Inverse of :func:`write_evaluations`. Raises UserError where there are none."""
    url = storage.join(directory, FILE)
    if not storage.exists(url):
        raise UserError(f"{directory}: not an evaluation ({FILE} is missing)")
    content = storage.read_bytes(url)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        return [_evaluation(str(name), arrays, f"{index}.") for index, name in enumerate(arrays["names"])]
    except (OSError, EOFError, ValueError, LookupError, TypeError, BadZipFile, zlib.error) as error:
        raise UserError(f"{url}: damaged, or not an evaluation that this leapray reads; evaluate again") from error


def _arrays(evaluation: Evaluation) -> dict[str, np.ndarray]:
    arrays = {f"moments.{key}": value for key, value in evaluation.moments.to_arrays().items()}
    for field in fields(evaluation):
        value = getattr(evaluation, field.name)
        if field.name in _PARTS and value is not None:
            found = {part.name: getattr(value, part.name) for part in fields(value)}
            arrays |= {f"{field.name}.{name}": array for name, array in found.items() if array is not None}
        elif field.name not in ("name", "moments") and value is not None:
            arrays[field.name] = np.asarray(value)
    return arrays


def _evaluation(name: str, arrays: dict[str, np.ndarray], prefix: str) -> Evaluation:
    own = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}

    def part(kind: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(f"{kind}."): value for key, value in own.items() if key.startswith(f"{kind}.")}

    parts = {kind: made(**found) for kind, made in _PARTS.items() if (found := part(kind))}
    return Evaluation(
        name=name,
        rows=int(own["rows"]),
        timed=bool(own["timed"]),
        moments=TimedMoments.from_arrays(part("moments")),
        mean=own["mean"],
        bias=own["bias"],
        mae=own["mae"],
        crps=own.get("crps"),
        lacking=tuple(map(str, own["lacking"])),
        **parts,
    )
