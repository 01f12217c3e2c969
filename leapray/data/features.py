"""Engineered features and derived variables: what is computed from a column's raw variables, as scriptable float64 torch.

The data plane, the emulator and the export all compute it here. Most features are those of the LEAP competition's 5th-place solution.
Shapes: b rows, i raw inputs of a variable set, every profile and feature ``(b, levels)`` with the model top first. All are finite for
finite inputs.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leapray.climsim.schema import LEVELS, RELATIVE_HUMIDITY, SNOWHICE, Channels, Layout, Variable, VariableSet
from leapray.data.column import Column, ColumnOf, sources
from leapray.errors import UserError
from leapray.recipe import Data

DRIEST = 1e-7
"""kg/kg: T/q1 takes no less for q1. A tenth of the stratosphere's, so that a few nearly dry layers (1e-12) do not set its spread."""

TRACE = 1e-35
"""kg/kg: a thousand times float32's smallest normal number, so that what is not less is there in float32 too."""


@dataclass(frozen=True)
class Feature:
    """A function of a column, the fields that it takes of it, and its unit."""

    function: Callable[[Column], Tensor]
    fields: tuple[str, ...]
    units: str

    @property
    def variable(self) -> Variable:
        """What it gives, as a profile."""
        return Variable(self.function.__name__, self.units, (self.function.__doc__ or "").split("\n")[0], LEVELS)


FEATURES: dict[str, Feature] = {}
"""Engineered features by name."""


def feature(*fields: str, units: str) -> Callable[[Callable[[Column], Tensor]], Callable[[Column], Tensor]]:
    """Register a function of these fields of a column as an engineered feature under its own name."""

    def register(function: Callable[[Column], Tensor]) -> Callable[[Column], Tensor]:
        FEATURES[function.__name__] = Feature(function, fields, units)
        return function

    return register


@feature("t", units="K")
def temperature_difference(c: Column) -> Tensor:
    """T_k - T_{k+1} in K."""
    return _difference(c.t)


@feature("q1", units="kg/kg")
def humidity_difference(c: Column) -> Tensor:
    """q1_k - q1_{k+1} in kg/kg."""
    return _difference(c.q1)


@feature("u", units="m/s")
def u_difference(c: Column) -> Tensor:
    """u_k - u_{k+1} in m/s."""
    return _difference(c.u)


@feature("v", units="m/s")
def v_difference(c: Column) -> Tensor:
    """v_k - v_{k+1} in m/s."""
    return _difference(c.v)


@feature("t", "q1", units="K")
def temperature_humidity_ratio(c: Column, driest: float = DRIEST) -> Tensor:
    """T / max(q1, 1e-7 kg/kg) in K."""
    return c.t / c.q1.clamp_min(driest)


@feature("ozone", "ch4", "n2o", units="mol/mol")
def air_total(c: Column) -> Tensor:
    """O3 + CH4 + N2O in mol/mol."""
    return c.ozone + c.ch4 + c.n2o


@feature("q1", "u", "v", units="m2/s2")
def moisture_transport(c: Column) -> Tensor:
    """q1 (u^2 + v^2) in m2/s2."""
    return c.q1 * (c.u * c.u + c.v * c.v)


@feature("q1", "u", "v", units="m2/s2")
def moisture_transport_reference(c: Column) -> Tensor:
    """q1^2 (u^2 + v^2), as the original's code has it against its own description; for comparison only."""
    return c.q1 * moisture_transport(c)


@feature("q2", "q3", units="1")
def liquid_partition(c: Column) -> Tensor:
    """q2 / (q2 + q3), from 0 to 1; 0 without condensate. Liquid or ice of less than ``TRACE`` counts as none.

    ClimSim's files hold traces down to 1e-57 kg/kg above level 30. Float32, which a climate model passes, has no such numbers.
    """
    liquid, ice = _present(c.q2), _present(c.q3)
    return _share(liquid, liquid + ice)


@feature("q2", "q3", units="1")
def condensate_imbalance(c: Column) -> Tensor:
    """(q2 - q3) / (q2 + q3), from -1 (ice) to 1 (liquid); 0 without condensate. Liquid or ice of less than ``TRACE`` counts as none."""
    liquid, ice = _present(c.q2), _present(c.q3)
    return _share(liquid - ice, liquid + ice)


def _present(water: Tensor, trace: float = TRACE) -> Tensor:
    """Water of a trace or more, kg/kg; 0 elsewhere."""
    return torch.where(water >= trace, water, 0.0)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, 0 where the whole is 0."""
    return torch.where(whole > 0, part, 0.0) / torch.where(whole > 0, whole, 1.0)


def _difference(profile: Tensor) -> Tensor:
    """Each level less the one below it; the last has none below and gets 0."""
    difference = torch.zeros_like(profile)
    difference[:, :-1] = profile[:, :-1] - profile[:, 1:]
    return difference


@feature("rh", units="1")
def relative_humidity(c: Column) -> Tensor:
    """q1 / saturation(T, p) over liquid and ice, from 0 to somewhat above 1, as ClimSim defines it."""
    return c.rh


def _snow_over_ice(c: Column) -> Tensor:
    """Snow depth over sea ice in m."""
    return c.snowhice


_COMPUTED = {
    RELATIVE_HUMIDITY.name: FEATURES["relative_humidity"],
    SNOWHICE.name: Feature(_snow_over_ice, ("snowhice",), SNOWHICE.units),
}
"""Input variables that are not taken as a row has them."""


def check_features(names: Sequence[str], variables: VariableSet | None = None) -> tuple[str, ...]:
    """The names of a recipe's ``data.features``.

    Raises UserError for an unknown name, with the closest, one given twice, and one that needs a variable that the rows of ``variables``
    do not have.
    """
    for name in names:
        if name not in FEATURES:
            close = difflib.get_close_matches(name, FEATURES, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"data.features: unknown feature {name!r}; {hint}known ones are {', '.join(FEATURES)}")
        if list(names).count(name) > 1:
            raise UserError(f"data.features: {name!r} is given more than once, expected every feature once")
        if variables is not None and (
            missing := sorted(source for source in sources(FEATURES[name].fields) if source not in variables.raw)
        ):
            raise UserError(f"data.features: {name!r} needs {', '.join(missing)}, which rows of variables {variables.name} do not have")
    return tuple(names)


def channels(variables: VariableSet, features: Sequence[str] = ()) -> Channels:
    """What a network gets of a variable set with engineered features, and what it predicts."""
    return Channels(
        Layout((*variables.inputs.variables, *(FEATURES[name].variable for name in features))), variables.targets, len(features)
    )


def channels_of(data: Data) -> Channels:
    """What the network of a recipe gets and predicts."""
    return channels(data.variable_set, check_features(data.features, data.variable_set))


class EngineeredFeatures(nn.Module):
    """The named features of raw columns, in the order of their names."""

    def __init__(self, names: Sequence[str], raw: Layout) -> None:
        super().__init__()
        self._set([FEATURES[name] for name in check_features(names)], raw)

    def _set(self, features: Sequence[Feature], raw: Layout) -> None:
        self.functions = nn.ModuleList([_Function(one.function) for one in features])
        self.column = ColumnOf(raw, {field for one in features for field in one.fields})

    def forward(self, x_bi: Tensor) -> list[Tensor]:
        """Raw columns ``(b, i)`` to one float64 ``(b, levels)`` per feature; what overflows is the largest float64."""
        column = self.column(x_bi)
        return [torch.nan_to_num(function(column)) for function in self.functions]


class InputVariables(EngineeredFeatures):
    """Raw columns of a row as the inputs of its variable set, in their order: raw variables as they are, the others computed."""

    def __init__(self, variables: VariableSet) -> None:
        nn.Module.__init__(self)
        computed = [name for name in variables.inputs.names if name in _COMPUTED]
        self._set([_COMPUTED[name] for name in computed], variables.raw)
        self.as_they_are = variables.inputs == variables.raw and not computed
        self.places = [
            (computed.index(name), 0, 0) if name in computed else (-1, variables.raw[name].start, variables.raw[name].stop)
            for name in variables.inputs.names
        ]

    def forward(self, x_bi: Tensor) -> list[Tensor]:
        """Raw columns ``(b, i)`` to float64 parts that follow one another, one for each variable, or the whole where nothing changes."""
        x = x_bi.to(torch.float64)
        if self.as_they_are:
            return [x]
        column = self.column(x)
        computed = [torch.nan_to_num(function(column)) for function in self.functions]
        parts: list[Tensor] = []
        for index, start, stop in self.places:
            if index >= 0:
                parts.append(computed[index])
            else:
                parts.append(x[:, start:stop])
        return parts


class _Function(nn.Module):
    """A function as a module, since TorchScript looks functions up in modules, not in a dictionary."""

    def __init__(self, function: Callable[[Column], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, column: Column) -> Tensor:
        return self.function(column)
