"""A grid from a netCDF file with the variables lat, lon and area, as ClimSim's grid-info files have them."""

from __future__ import annotations

import netCDF4
import numpy as np

from leapray import storage
from leapray.climsim.grid import Grid
from leapray.errors import UserError


def read_grid(url: str) -> Grid:
    """Latitude and longitude in degrees and area of every column. Raises UserError for a file that is no netCDF or lacks one of them."""
    content = storage.read_bytes(url)
    try:
        with netCDF4.Dataset("grid", memory=content) as file:
            missing = [name for name in ("lat", "lon", "area") if name not in file.variables]
            if missing:
                raise UserError(f"{url}: variable {', '.join(missing)} is missing, expected lat, lon and area of every column")
            lat, lon, area = (np.asarray(file[name][:], np.float64).ravel() for name in ("lat", "lon", "area"))
    except OSError as error:
        raise UserError(f"{url}: cannot be read as netCDF ({error})") from error
    if not len(lat) == len(lon) == len(area) or not (np.abs(lat) <= 90).all() or not (area > 0).all():
        raise UserError(f"{url}: expected lat from -90 to 90, lon and area above 0, one of each for every column")
    return Grid(lat, lon, area)
