"""Synthetic steps written as ClimSim file pairs: names, dimensions, order of variables, attributes and container of the published files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice
from typing import Literal

import netCDF4
import numpy as np

from leapray import storage
from leapray.climsim.calendar import Moment, Month, file_name, month_of_step
from leapray.climsim.row_keys import KINDS
from leapray.climsim.schema import GASES, LEVELS, MLI_VARIABLES, MLO_VARIABLES, Variable
from leapray.climsim.synthetic.world import World
from leapray.errors import UserError
from leapray.settings import claim

CONTAINERS: dict[str, Literal["NETCDF3_64BIT_DATA", "NETCDF4"]] = {"cdf5": "NETCDF3_64BIT_DATA", "hdf5": "NETCDF4"}


def synthesize(
    destination: str,
    kind: str,
    *,
    steps: int,
    columns: int | None = None,
    start: str = "0001-02",
    stride: int = 1,
    seed: int = 0,
    container: str = "cdf5",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the pairs of :func:`chosen_steps` into month folders of ``destination``, and return how many.

    ``progress`` is called with the pairs done and in all. Raises UserError for an unknown kind or container, an impossible number
    of columns, counts below 1, or a destination that holds another synthetic climate.
    """
    if container not in CONTAINERS:
        raise UserError(f"format {container!r} is not one of {', '.join(CONTAINERS)}")
    chosen, world = chosen_steps(start, steps, stride), World(kind, columns, seed)
    settings = {"kind": kind, "columns": world.columns, "seed": seed, "format": container}
    claim(destination, "_synthetic.json", settings, "a synthetic climate", ".nc")
    for done, step in enumerate(chosen, start=1):
        folder = storage.join(destination, str(month_of_step(step)))
        for stream, variables, fields in (
            ("mli", MLI_VARIABLES, world.inputs(step)),
            ("mlo", MLO_VARIABLES, world.outputs(step)),
        ):
            storage.write_bytes(storage.join(folder, file_name(stream, step)), encode(kind, step, variables, fields, container))
        if progress is not None:
            progress(done, steps)
    return steps


def chosen_steps(start: str, steps: int, stride: int = 1) -> list[int]:
    """The first ``steps`` absolute steps from month ``start`` on that are multiples of ``stride``. Raises UserError for counts below 1."""
    for name, value in (("steps", steps), ("stride", stride)):
        if value < 1:
            raise UserError(f"{name} = {value} is not 1 or more")
    first = Month.parse(start).first_step
    return list(islice(count(first + -first % stride, stride), steps))


def encode(kind: str, step: int, variables: Sequence[Variable], fields: Mapping[str, np.ndarray], container: str = "cdf5") -> bytes:
    """One file as bytes: profiles ``(lev, ncol)`` and scalars ``(ncol,)`` in float64, ``ymd`` and ``tod`` as 0-d int32.

    As in the published files, no variable has attributes, and their order is by name with the gases last.
    """
    moment = Moment.of_step(step)
    file = netCDF4.Dataset("inmemory.nc", "w", format=CONTAINERS[container], memory=1)
    file.setncatts({"ne": np.int32(KINDS[kind].ne), "fv_nphys": np.int32(2), "calendar": "NO_LEAP"})
    file.createDimension("ncol", fields[variables[0].name].shape[-1])
    file.createDimension("lev", LEVELS)
    for name, value in (("ymd", moment.ymd), ("tod", moment.second)):
        file.createVariable(name, "i4", ())[...] = value
    for variable in sorted(variables, key=lambda variable: (variable in GASES, variable.name)):
        dimensions = ("ncol",) if variable.levels == 1 else ("lev", "ncol")
        stored = file.createVariable(variable.name, "f8", dimensions)
        stored[:] = fields[variable.name]
    return bytes(file.close())
