"""Small random netCDF pairs in ClimSim's official layout, and their flat rows computed column name by column name."""

from collections.abc import Callable
from pathlib import Path

import netCDF4
import numpy as np
import xarray as xr

from leapray.climsim.calendar import Moment, file_name, month_of_step
from leapray.climsim.grid import figures
from leapray.climsim.pairs import PairPath
from leapray.climsim.row_keys import KINDS
from leapray.climsim.schema import MISSING, MLI_VARIABLES, MLO_VARIABLES, STEP_SECONDS

CONTAINERS = ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA", "NETCDF4")
COLUMN_NAMES = figures("low_res_columns")["column"]


def write_pair(
    folder: Path,
    step: int,
    *,
    columns: int = 4,
    kind: str = "low-res",
    container: str = "NETCDF3_64BIT_DATA",
    edit: Callable[[netCDF4.Dataset], None] | None = None,
) -> PairPath:
    """Write the pair of one step into its month folder; ``edit`` may spoil each dataset before it is closed."""
    random = np.random.default_rng([step, columns])
    month = folder / str(month_of_step(step))
    month.mkdir(parents=True, exist_ok=True)
    paths = {}
    for stream, variables in (("mli", MLI_VARIABLES), ("mlo", MLO_VARIABLES)):
        paths[stream] = str(month / file_name(stream, step))
        with netCDF4.Dataset(paths[stream], "w", format=container) as dataset:
            dataset.setncatts({"ne": np.int32(KINDS[kind].ne), "fv_nphys": np.int32(2), "calendar": "NO_LEAP"})
            dataset.createDimension("ncol", columns)
            dataset.createDimension("lev", 60)
            for variable in variables:
                shape = (60, columns) if variable.levels == 60 else (columns,)
                values = random.standard_normal(shape) * 10.0 ** random.integers(-51, 6, shape)
                if variable.name == "cam_in_SNOWHICE":
                    values[:] = MISSING
                elif kind == "aqua-planet" and variable.name in ("cam_in_LANDFRAC", "cam_in_ICEFRAC", "cam_in_SNOWHLAND"):
                    values[:] = 0
                dataset.createVariable(variable.name, "f8", ("lev", "ncol")[2 - len(shape) :])[...] = values
            at = Moment.of_step(step)
            for name, value in (("ymd", at.ymd), ("tod", at.second)):
                dataset.createVariable(name, "i4", ())[...] = value
            if edit is not None:
                edit(dataset)
    return PairPath(step, **paths)


def expected_rows(pair: PairPath) -> np.ndarray:
    """Rows of a pair as xarray gives them, looked up by the column names of the published statistics."""
    options = {"engine": "netcdf4", "mask_and_scale": False, "decode_times": False}
    rows = []
    with xr.open_dataset(pair.mli, **options) as before, xr.open_dataset(pair.mlo, **options) as after:
        for column in COLUMN_NAMES:
            name, _, level = column.rpartition("_")
            if column in before or column in after:
                rows.append((before if column in before else after)[column].values)
            elif name.startswith("ptend"):
                state = name.replace("ptend", "state")
                rows.append((after[state].values[int(level)] - before[state].values[int(level)]) / STEP_SECONDS)
            else:
                rows.append(before[name].values[int(level)])
    return np.stack(rows, axis=1)
