"""What a ClimSim column is: variables, units, levels, and the sets of variables that a row holds.

Everything that depends on a width, a slice or a mask takes it from a :class:`Layout` or a :class:`VariableSet`, which the data brings
along. Index 0 of a profile is the model top, the last the lowest layer. Names, units and column order are those of ClimSim's files and of
the LEAP competition's ``train.csv``.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from leapray.errors import UserError

LEVELS = 60
"""Levels of the host model, and so of every ClimSim profile."""
STEP_SECONDS = 1200
MISSING = 1e30
"""Fill value that the model writes where a field does not exist (``cam_in_SNOWHICE`` away from sea ice)."""
UNREAL = 1e15
"""No column comes near this in any unit; what does is a fill value: CMIP's 1e20, the model's 1e30, netCDF's own 9.97e36."""


@dataclass(frozen=True)
class Variable:
    """One variable as the netCDF files and the flat columns name it. ``levels`` is 1 for a scalar, more for a profile."""

    name: str
    units: str
    long_name: str
    levels: int = 1

    @property
    def columns(self) -> tuple[str, ...]:
        """Flat column names: ``state_t_0 .. state_t_59`` for a profile, the bare name for a scalar."""
        return (self.name,) if self.levels == 1 else tuple(f"{self.name}_{level}" for level in range(self.levels))


class Layout:
    """An ordered set of variables laid out side by side, variable-major with the level inner. Equal layouts have equal variables."""

    def __init__(self, variables: Iterable[Variable]) -> None:
        self.variables = tuple(variables)
        self.columns = tuple(column for variable in self.variables for column in variable.columns)
        self.width = len(self.columns)
        stops = np.cumsum([variable.levels for variable in self.variables], dtype=int).tolist()
        self._slices = {v.name: slice(stop - v.levels, stop) for v, stop in zip(self.variables, stops, strict=True)}

    def __getitem__(self, name: str) -> slice:
        """Columns of one variable, as a slice into the flat layout."""
        return self._slices[name]

    def __contains__(self, name: str) -> bool:
        return name in self._slices

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.variables == other.variables

    def __hash__(self) -> int:
        return hash(self.variables)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables, in order."""
        return tuple(variable.name for variable in self.variables)

    @cached_property
    def units(self) -> tuple[str, ...]:
        """Unit of every column, in column order."""
        return tuple(variable.units for variable in self.variables for _ in range(variable.levels))

    @property
    def profiles(self) -> tuple[Variable, ...]:
        return tuple(variable for variable in self.variables if variable.levels > 1)

    @property
    def scalars(self) -> tuple[Variable, ...]:
        return tuple(variable for variable in self.variables if variable.levels == 1)

    @property
    def levels(self) -> int:
        """Levels of its profiles, which are equal; 1 if it has none."""
        return self.profiles[0].levels if self.profiles else 1

    def mask(self, names: Iterable[str], levels: range | None = None) -> np.ndarray:
        """Boolean ``(width,)``: True on the named variables, of profiles on the given levels, by default all."""
        mask = np.zeros(self.width, dtype=bool)
        for name in names:
            mask[self._slices[name]][slice(None) if levels is None else slice(levels.start, levels.stop)] = True
        return mask

    def places(self, columns: Iterable[str]) -> np.ndarray:
        """Places of columns ``(c,)``. Raises KeyError for a column that is not in the layout."""
        return np.array([self._place[column] for column in columns], dtype=int)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {column: place for place, column in enumerate(self.columns)}


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
"""Variables of an input file; ``state_pmid`` is no column of a row."""
MLO_VARIABLES = (*STATE, *FLUXES)
"""Variables of an output file; its ``state_*`` are the state after the physics."""

SAMPLE_ID = "sample_id"
"""The flat layout's column that names a row."""
RELATIVE_HUMIDITY = _profile("state_rh", "1", "relative humidity over liquid and ice")

_KAGGLE = (*STATE, *SURFACE, SNOWHLAND, *GASES)
_RAW_ORDER = (*STATE, *SURFACE, SNOWHICE, SNOWHLAND, *GASES)
"""Raw variables in the order in which a row holds those that a set needs: the order of ClimSim's v2."""
DERIVED = {RELATIVE_HUMIDITY.name: ("state_t", "state_q0001", "state_ps")}
"""Variables that are computed from raw ones, with those that they need; :mod:`leapray.data.features` computes them."""
VARIABLES = {v.name: v for v in (*_RAW_ORDER, RELATIVE_HUMIDITY, *TENDENCIES, *FLUXES)}
WATER = ("q0001", "q0002", "q0003")
"""Water vapour, cloud liquid and cloud ice, as the names of their states and tendencies end."""
_MOISTURE_AND_WIND = ("ptend_q0001", "ptend_q0002", "ptend_q0003", "ptend_u", "ptend_v")
NOT_MOVED, TOO_COLD = range(0, 12), range(12, 27)
"""Levels on which water and wind do not change in a step, and those that are too cold for cloud liquid."""
_GROUPS = {
    "temperature": ("ptend_t",),
    "vapour": ("ptend_q0001",),
    "cloud": ("ptend_q0002", "ptend_q0003"),
    "wind": ("ptend_u", "ptend_v"),
    "surface": tuple(flux.name for flux in FLUXES),
}


class Targets(Layout):
    """What is predicted, in physical units, and what is known of it without learning; every mask is boolean ``(width,)``.

    ``zero`` are the targets that are 0 in the truth of the LEAP competition and in every prediction: water and wind of the 12 highest
    levels, 60 of the competition's 368 columns. ``exact`` are exactly ``-state / 1200 s``: cloud liquid on levels that are too cold for it,
    so that a step removes all of it. ``scored`` are the columns that the competition scores, ``learned`` those that only learning gives.
    """

    def __init__(self, variables: Iterable[Variable]) -> None:
        super().__init__(variables)
        self.zero = self.mask((name for name in _MOISTURE_AND_WIND if name in self), NOT_MOVED)
        self.exact = self.mask((name for name in ("ptend_q0002",) if name in self), TOO_COLD)
        self.scored = ~self.zero
        self.learned = self.scored & ~self.exact
        self.groups: dict[str, tuple[str, ...]] = {
            group: here for group, names in _GROUPS.items() if (here := tuple(name for name in names if name in self))
        }
        """Names of target variables by group; each is in one."""

    @classmethod
    def of(cls, names: Iterable[str]) -> Targets:
        """Targets by name, in order. Raises UserError for an unknown one."""
        return cls(_known("targets", names))

    @property
    def water(self) -> tuple[str, ...]:
        """Its tendencies of water species."""
        return tuple(name for name in (f"ptend_{species}" for species in WATER) if name in self)

    def group(self, name: str) -> np.ndarray:
        """Boolean ``(width,)``: the learned columns of a group."""
        return self.mask(self.groups[name]) & self.learned

    def by_group(self, values: np.ndarray) -> dict[str, float]:
        """Mean of ``values (width,)``, skill or R2, over the learned columns of each group."""
        return {group: float(values[self.group(group)].mean()) for group in self.groups}


@dataclass(frozen=True)
class VariableSet:
    """Which variables a network is given and predicts, and the raw columns that these are made from.

    A row holds ``raw`` and ``targets``. ``inputs`` are raw or derived variables, in the order in which a network gets them.
    """

    name: str
    inputs: Layout
    targets: Targets

    @cached_property
    def raw(self) -> Layout:
        """The raw variables of a row: what the inputs are made of, the states that water tendencies change, and surface pressure."""
        needed = {source for variable in self.inputs.variables for source in DERIVED.get(variable.name, (variable.name,))}
        needed |= {name.replace("ptend", "state") for name in self.targets.water} | {"state_ps"}
        return Layout(variable for variable in _RAW_ORDER if variable.name in needed)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a row: raw inputs, then targets."""
        return self.raw.columns + self.targets.columns

    @cached_property
    def exact_source(self) -> np.ndarray:
        """Places in ``raw`` of the states that the exact targets are computed from, in the order of the targets."""
        return self.raw.places(np.array([c.replace("ptend", "state") for c in self.targets.columns])[self.targets.exact])

    def source_of(self, columns: Iterable[str]) -> np.ndarray:
        """Places in ``raw`` of the states that these water tendencies change."""
        return self.raw.places(column.replace("ptend", "state") for column in columns)

    def to_dict(self) -> dict[str, Any]:
        """Names of its variables in order, and a digest of their columns and units."""
        return {"name": self.name, "inputs": list(self.inputs.names), "targets": list(self.targets.names), "digest": self.digest}

    @cached_property
    def digest(self) -> str:
        """Of every column's name and unit in order; a transform or model of other columns is refused by it."""
        layouts = (self.raw, self.inputs, self.targets)
        text = "\n".join(f"{c} [{unit}]" for layout in layouts for c, unit in zip(layout.columns, layout.units, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, values: object, name: str) -> VariableSet:
        """Inverse of :meth:`to_dict`. Raises UserError, which begins with ``name``, for variables that this leapray does not know."""
        try:
            if not isinstance(values, Mapping):
                raise TypeError("expected an object")
            found = variable_set(str(values["name"]), values["inputs"], values["targets"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{name}: does not say its variables; it was made by an earlier leapray, make it again") from error
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        if values.get("digest") != found.digest:
            raise UserError(f"{name}: its columns of {found.name} differ from this leapray's; make it again")
        return found

    def require(self, other: VariableSet, name: str) -> None:
        """Raise UserError, which begins with ``name`` and says the first difference, where the other set has other columns."""
        if other.digest == self.digest:
            return
        for what in ("inputs", "targets"):
            ours, theirs = (set(getattr(one, what).names) for one in (self, other))
            if ours != theirs:
                differs = ", ".join(sorted(ours ^ theirs)[:3])
                raise UserError(f"{name}: is of variables {other.name}, expected {self.name}; {what} differ in {differs}")
        raise UserError(f"{name}: is of variables {other.name}, expected {self.name}, which has another order of columns")


@dataclass(frozen=True)
class Channels:
    """What a network is given, variable by variable, and what it predicts; the last ``features`` of the inputs are engineered ones."""

    inputs: Layout
    targets: Targets
    features: int = 0


def _known(kind: str, names: Iterable[str]) -> list[Variable]:
    """Variables by name, of those that may be ``inputs`` or ``targets``. Raises UserError for an unknown one and one given twice."""
    known = [name for name in VARIABLES if name.startswith(("ptend_", "cam_out_")) == (kind == "targets")]
    found: list[Variable] = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UserError(f"variables.{kind}: unknown variable {name!r}{f'; did you mean {close[0]!r}?' if close else ''}")
        if VARIABLES[name] in found:
            raise UserError(f"variables.{kind}: {name} is given more than once")
        found.append(VARIABLES[name])
    if not found:
        raise UserError(f"variables.{kind}: expected at least one variable")
    return found


_V2_TARGETS = Targets((*TENDENCIES, *FLUXES))
KAGGLE = VariableSet("v2_kaggle", Layout(_KAGGLE), _V2_TARGETS)
"""The LEAP competition's 556 inputs and 368 targets: ClimSim's v2 without ``cam_in_SNOWHICE``."""
V2_RH = VariableSet(
    "v2_rh",
    Layout((STATE[0], RELATIVE_HUMIDITY, *STATE[2:], *GASES, *SURFACE, SNOWHICE, SNOWHLAND)),
    _V2_TARGETS,
)
"""ClimSim's v2_rh: relative for specific humidity, the gases before the scalars, and snow over sea ice."""
VARIABLE_SETS = {one.name: one for one in (KAGGLE, V2_RH)}
"""ClimSim's published variable sets by name; a new one is an entry here."""


def common(sets: Iterable[VariableSet]) -> VariableSet:
    """The set whose rows hold what each of the sets needs; the first where all are alike. Raises UserError where targets differ."""
    first, *others = sets
    if all(other == first for other in others):
        return first
    for other in others:
        if other.targets != first.targets:
            raise UserError(f"variables {first.name} and {other.name} predict different targets, which cannot be averaged")
    needed = {name for one in (first, *others) for name in one.raw.names}
    named = " and ".join(dict.fromkeys(one.name for one in (first, *others)))
    return VariableSet(named, Layout(variable for variable in _RAW_ORDER if variable.name in needed), first.targets)


def variable_set(name: str, inputs: Iterable[str] | None = None, targets: Iterable[str] | None = None) -> VariableSet:
    """A published set by name, or one's own of known variables: ``inputs`` and ``targets`` by name, in order.

    Raises UserError for an unknown set or variable, with the closest known one, and for a variable that is given twice.
    """
    if inputs is None or targets is None:
        if name not in VARIABLE_SETS:
            raise UserError(f"variables {name!r} are unknown; known sets are {', '.join(VARIABLE_SETS)}")
        return VARIABLE_SETS[name]
    made = VariableSet(name, Layout(_known("inputs", inputs)), Targets(_known("targets", targets)))
    known = VARIABLE_SETS.get(name)
    return known if known is not None and known == made else made
