"""What a ClimSim column is: variables, units, levels, and the order of the flat Kaggle layout (FACTS section 2).

Everything that depends on a width, a slice or a mask takes it from here. Index 0 of a profile is the model top, 59 the lowest layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

LEVELS = 60
STEP_SECONDS = 1200
MISSING = 1e30
"""Fill value that the model writes where a field does not exist (``cam_in_SNOWHICE`` away from sea ice)."""
UNREAL = 1e15
"""No column comes near this in any unit; what does is a fill value: CMIP's 1e20, the model's 1e30, netCDF's own 9.97e36."""


@dataclass(frozen=True)
class Variable:
    """One variable as the netCDF files and the flat columns name it.

    ``levels`` is 60 for a profile, 1 for a scalar.
    """

    name: str
    units: str
    long_name: str
    levels: int = 1

    @property
    def columns(self) -> tuple[str, ...]:
        """Flat column names: ``state_t_0 .. state_t_59`` for a profile, the bare name for a scalar."""
        return (self.name,) if self.levels == 1 else tuple(f"{self.name}_{level}" for level in range(self.levels))


class Layout:
    """An ordered set of variables laid out side by side, variable-major with the level inner."""

    def __init__(self, variables: Iterable[Variable]) -> None:
        self.variables = tuple(variables)
        self.columns = tuple(column for variable in self.variables for column in variable.columns)
        self.width = len(self.columns)
        stops = np.cumsum([variable.levels for variable in self.variables]).tolist()
        self._slices = {v.name: slice(stop - v.levels, stop) for v, stop in zip(self.variables, stops, strict=True)}

    def __getitem__(self, name: str) -> slice:
        """Columns of one variable, as a slice into the flat layout."""
        return self._slices[name]

    @cached_property
    def units(self) -> tuple[str, ...]:
        """Unit of every column, in column order."""
        return tuple(variable.units for variable in self.variables for _ in range(variable.levels))

    @property
    def profiles(self) -> tuple[Variable, ...]:
        return tuple(variable for variable in self.variables if variable.levels == LEVELS)

    @property
    def scalars(self) -> tuple[Variable, ...]:
        return tuple(variable for variable in self.variables if variable.levels == 1)

    def mask(self, names: Iterable[str], levels: range = range(LEVELS)) -> np.ndarray:
        """Boolean ``(width,)``: True on the given levels of the named profiles."""
        mask = np.zeros(self.width, dtype=bool)
        for name in names:
            start = self._slices[name].start
            mask[start + levels.start : start + levels.stop] = True
        return mask


def _profile(name: str, units: str, long_name: str) -> Variable:
    return Variable(name, units, long_name, LEVELS)


STATE = (
    _profile("state_t", "K", "air temperature"),
    _profile("state_q0001", "kg/kg", "specific humidity"),
    _profile("state_q0002", "kg/kg", "cloud liquid mixing ratio"),
    _profile("state_q0003", "kg/kg", "cloud ice mixing ratio"),
    _profile("state_u", "m/s", "zonal wind"),
    _profile("state_v", "m/s", "meridional wind"),
)
SURFACE = (
    Variable("state_ps", "Pa", "surface pressure"),
    Variable("pbuf_SOLIN", "W/m2", "solar insolation"),
    Variable("pbuf_LHFLX", "W/m2", "surface latent heat flux"),
    Variable("pbuf_SHFLX", "W/m2", "surface sensible heat flux"),
    Variable("pbuf_TAUX", "N/m2", "zonal surface stress"),
    Variable("pbuf_TAUY", "N/m2", "meridional surface stress"),
    Variable("pbuf_COSZRS", "1", "cosine of solar zenith angle"),
    Variable("cam_in_ALDIF", "1", "albedo for near-infrared diffuse radiation"),
    Variable("cam_in_ALDIR", "1", "albedo for near-infrared direct radiation"),
    Variable("cam_in_ASDIF", "1", "albedo for visible diffuse radiation"),
    Variable("cam_in_ASDIR", "1", "albedo for visible direct radiation"),
    Variable("cam_in_LWUP", "W/m2", "upward longwave flux at the surface"),
    Variable("cam_in_ICEFRAC", "1", "sea-ice areal fraction"),
    Variable("cam_in_LANDFRAC", "1", "land areal fraction"),
    Variable("cam_in_OCNFRAC", "1", "ocean areal fraction"),
)
SNOWHICE = Variable("cam_in_SNOWHICE", "m", "snow depth over sea ice")
SNOWHLAND = Variable("cam_in_SNOWHLAND", "m", "snow depth over land, liquid water equivalent")
GASES = (
    _profile("pbuf_ozone", "mol/mol", "ozone volume mixing ratio"),
    _profile("pbuf_CH4", "mol/mol", "methane volume mixing ratio"),
    _profile("pbuf_N2O", "mol/mol", "nitrous oxide volume mixing ratio"),
)
PRESSURE = _profile("state_pmid", "Pa", "mid-layer pressure")
FLUXES = (
    Variable("cam_out_NETSW", "W/m2", "net shortwave flux at the surface"),
    Variable("cam_out_FLWDS", "W/m2", "downward longwave flux at the surface"),
    Variable("cam_out_PRECSC", "m/s", "snow rate, liquid water equivalent"),
    Variable("cam_out_PRECC", "m/s", "rain and snow rate, liquid water equivalent"),
    Variable("cam_out_SOLS", "W/m2", "downward visible direct solar flux at the surface"),
    Variable("cam_out_SOLL", "W/m2", "downward near-infrared direct solar flux at the surface"),
    Variable("cam_out_SOLSD", "W/m2", "downward visible diffuse solar flux at the surface"),
    Variable("cam_out_SOLLD", "W/m2", "downward near-infrared diffuse solar flux at the surface"),
)
TENDENCIES = tuple(_profile(v.name.replace("state", "ptend"), f"{v.units}/s", f"tendency of {v.long_name}") for v in STATE)

MLI_VARIABLES = (*STATE, PRESSURE, *SURFACE, SNOWHICE, SNOWHLAND, *GASES)
"""Variables of an input file; ``state_pmid`` and ``cam_in_SNOWHICE`` are not columns."""
MLO_VARIABLES = (*STATE, *FLUXES)
"""Variables of an output file; its ``state_*`` are the state after the physics."""

SAMPLE_ID = "sample_id"
"""The flat layout's column that names a row."""
INPUTS = Layout((*STATE, *SURFACE, SNOWHLAND, *GASES))
TARGETS = Layout((*TENDENCIES, *FLUXES))

_MOISTURE_AND_WIND = ("ptend_q0001", "ptend_q0002", "ptend_q0003", "ptend_u", "ptend_v")
ABLATED_LEVELS, EXACT_LEVELS = range(0, 12), range(12, 27)
ABLATED = TARGETS.mask(_MOISTURE_AND_WIND, ABLATED_LEVELS)
"""The 60 targets that the competition removed: 0 in the truth and in every prediction."""
EXACT = TARGETS.mask(["ptend_q0002"], EXACT_LEVELS)
"""The 15 targets that are exactly ``-state_q0002/1200``: too cold for liquid, so a step removes all of it."""
EXACT_SOURCE = INPUTS.mask(["state_q0002"], EXACT_LEVELS)
"""The inputs that ``EXACT`` is computed from, level for level."""
SCORED = ~ABLATED
LEARNED = SCORED & ~EXACT


@dataclass(frozen=True)
class Kind:
    """One of ClimSim's three data sets: its name, cubed-sphere resolution, columns and code in row keys."""

    name: str
    ne: int
    columns: int
    code: int


KINDS = {kind.name: kind for kind in (Kind("low-res", 4, 384, 0), Kind("aqua-planet", 4, 384, 1), Kind("high-res", 30, 21600, 2))}

COLUMN_BITS, STEP_BITS = 24, 32


def row_key(kind: str, step: np.ndarray, ncol: np.ndarray) -> np.ndarray:
    """int64 key of a row, ``code << 56 | step << 24 | ncol``, which :func:`row_place` leads back to its place."""
    key = np.int64(KINDS[kind].code) << (COLUMN_BITS + STEP_BITS)
    return key | (np.asarray(step, np.int64) << COLUMN_BITS) | np.asarray(ncol, np.int64)


MONTH_SHIFT = 46
"""Of a negative key, which a row without a place has: the bits below its month."""


def month_of_key(row: np.ndarray) -> np.ndarray:
    """Months since year 0 that negative keys tell; 0 where they tell none, and of keys that tell a step. int64 of the shape of ``row``."""
    row = np.asarray(row, np.int64)
    return np.where(row < 0, (-1 - row) >> MONTH_SHIFT, 0)


def row_place(row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse of :func:`row_key`: kind codes, steps and columns, each int64 of the shape of ``row``."""
    row = np.asarray(row, np.int64)
    step = (row >> COLUMN_BITS) & ((1 << STEP_BITS) - 1)
    return row >> (COLUMN_BITS + STEP_BITS), step, row & ((1 << COLUMN_BITS) - 1)


def schema_hash() -> str:
    """Digest of every column's name and unit in order; a transform or model of another schema is refused by it."""
    text = "\n".join(
        f"{column} [{unit}]" for layout in (INPUTS, TARGETS) for column, unit in zip(layout.columns, layout.units, strict=True)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
