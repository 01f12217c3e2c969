"""Synthetic files: the official layout as other tools read it back."""

import netCDF4
import numpy as np
import pytest
import xarray as xr

from leapray.climsim.schema import MLI_VARIABLES, MLO_VARIABLES
from leapray.climsim.synthetic import World, synthesize
from leapray.errors import UserError


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.nc"))


def test_pairs_lie_in_month_folders_under_the_official_names(tmp_path):
    assert synthesize(str(tmp_path), "low-res", steps=2, columns=4) == 2
    assert files_under(tmp_path) == [
        f"0001-02/E3SM-MMF.{stream}.0001-02-01-{second}.nc" for stream in ("mli", "mlo") for second in ("00000", "01200")
    ]


def test_stride_counts_absolute_steps_and_runs_on_into_the_next_month(tmp_path):
    synthesize(str(tmp_path), "low-res", steps=3, columns=2, start="0001-03", stride=1500)
    assert [name for name in files_under(tmp_path) if "mli" in name] == [
        "0001-03/E3SM-MMF.mli.0001-03-14-57600.nc",
        "0001-04/E3SM-MMF.mli.0001-04-04-43200.nc",
        "0001-04/E3SM-MMF.mli.0001-04-25-28800.nc",
    ]


@pytest.mark.parametrize(("container", "model"), [("cdf5", "NETCDF3_64BIT_DATA"), ("hdf5", "NETCDF4")])
@pytest.mark.parametrize(("kind", "ne"), [("low-res", 4), ("aqua-planet", 4), ("high-res", 30)])
def test_layout_and_values_as_xarray_and_netcdf4_read_them(tmp_path, container, model, kind, ne):
    synthesize(str(tmp_path), kind, steps=1, columns=6, start="0002-01", container=container, seed=9)
    world = World(kind, 6, seed=9)
    step = 334 * 72
    for stream, variables, fields in (("mli", MLI_VARIABLES, world.inputs(step)), ("mlo", MLO_VARIABLES, world.outputs(step))):
        path = tmp_path / "0002-01" / f"E3SM-MMF.{stream}.0002-01-01-00000.nc"
        with netCDF4.Dataset(path) as file:
            assert file.data_model == model
        with xr.open_dataset(path, engine="netcdf4", mask_and_scale=False) as dataset:
            assert dict(dataset.sizes) == {"ncol": 6, "lev": 60}
            assert not dataset.coords
            assert (dataset.attrs["ne"], dataset.attrs["fv_nphys"], dataset.attrs["calendar"]) == (ne, 2, "NO_LEAP")
            assert set(dataset.data_vars) == {variable.name for variable in variables} | {"ymd", "tod"}
            assert (dataset["ymd"].dtype, dataset["ymd"].shape, int(dataset["ymd"])) == (np.int32, (), 20101)
            assert (dataset["tod"].dtype, int(dataset["tod"])) == (np.int32, 0)
            for variable in variables:
                stored = dataset[variable.name]
                assert stored.dims == (("lev", "ncol") if variable.levels == 60 else ("ncol",))
                assert stored.dtype == np.float64
                assert not stored.attrs
                np.testing.assert_array_equal(stored.values, fields[variable.name])


def test_a_low_res_pair_has_the_size_of_the_published_ones(tmp_path):
    """To the byte, hence the same names, types, dimensions and attributes."""
    synthesize(str(tmp_path), "low-res", steps=1)
    assert [(tmp_path / name).stat().st_size for name in files_under(tmp_path)] == [1_897_632, 1_131_804]


def test_variables_are_ordered_as_in_the_published_files(tmp_path):
    """Time first, then by name, the gases last."""
    synthesize(str(tmp_path), "low-res", steps=1, columns=2)
    inputs, outputs = ([*xr.open_dataset(tmp_path / name).variables] for name in files_under(tmp_path))
    assert inputs[:2] == outputs[:2] == ["ymd", "tod"]
    assert inputs[2:-3] == sorted(inputs[2:-3])
    assert inputs[-3:] == ["pbuf_CH4", "pbuf_N2O", "pbuf_ozone"]
    assert outputs[2:] == sorted(outputs[2:])


def test_progress_is_told_of_every_pair(tmp_path):
    told = []
    synthesize(str(tmp_path), "aqua-planet", steps=3, columns=2, progress=lambda *done: told.append((*done, len(files_under(tmp_path)))))
    assert told == [(1, 3, 2), (2, 3, 4), (3, 3, 6)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "lowres"}, "lowres"),
        ({"container": "cdf9"}, "cdf9"),
        ({"columns": 385}, "385"),
        ({"columns": 0}, "0"),
        ({"steps": 0}, "steps"),
        ({"stride": 0}, "stride"),
        ({"start": "1-2"}, "1-2"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(tmp_path, changes, named):
    arguments = {"kind": "low-res", "steps": 1, "columns": 2} | changes
    with pytest.raises(UserError, match=named):
        synthesize(str(tmp_path / "out"), arguments.pop("kind"), **arguments)
    assert not (tmp_path / "out").exists()


def test_another_climate_in_the_same_place_is_refused(tmp_path):
    synthesize(str(tmp_path), "low-res", steps=1, columns=4)
    synthesize(str(tmp_path), "low-res", steps=2, columns=4)
    with pytest.raises(UserError, match=r"holds a synthetic climate of other settings \(seed: 0, now 9\)"):
        synthesize(str(tmp_path), "low-res", steps=2, columns=4, seed=9)
