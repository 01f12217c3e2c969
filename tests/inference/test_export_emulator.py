import io

import numpy as np
import pytest
import torch

from leapray.inference.export.emulator import CoupledEmulator
from leapray.inference.export.export import FORMATS, export
from leapray.inference.export.layouts import HOST_LAYOUTS
from leapray.inference.weights import Combination
from leapray.models.directory import load_model
from leapray.models.emulator import Emulator
from leapray.models.registry import NETWORKS, build_network
from tests.columns import ABLATED, CHANNELS, EXACT, EXACT_SOURCE, INPUTS, TARGETS
from tests.inference.exported import FLUX, TINY, assert_equal_within_float32, expected, low_res, raw, saved, torchscript

ALONE = Combination.of(np.ones((1, TARGETS.width)))


@pytest.mark.parametrize("name", NETWORKS.entries)
def test_torchscript_of_every_network_is_its_emulator(name, tmp_path):
    model = saved(tmp_path / "model", name)
    export([model], str(tmp_path / "out"), "torchscript")
    run, emulator, x = torchscript(tmp_path / "out"), load_model(model).emulator, raw(300)
    assert "PythonOp" not in str(run.inlined_graph)
    for rows in (0, 1, 7, 300):
        found = run(x[:rows])
        assert found.dtype == torch.float64
        assert found.shape == (rows, TARGETS.width)
        assert_equal_within_float32(found, expected(emulator, x)[:rows])
        assert (found[:, ABLATED] == 0).all()
        assert (found[:, EXACT] == (0 - x[:rows, EXACT_SOURCE]) / 1200).all()
        assert (found[:, FLUX] >= 0).all()


@pytest.mark.parametrize("name", NETWORKS.entries)
def test_torch_export_of_every_network_is_its_emulator(name, tmp_path):
    emulator, x = load_model(saved(tmp_path / "model", name)).emulator, raw(40)
    coupled = CoupledEmulator([emulator], ALONE, HOST_LAYOUTS["kaggle556"]).eval()
    form = FORMATS["torch-export"]
    run = form.read(io.BytesIO(form.write(coupled, x[:3])))
    for rows in (0, 1, 40):
        assert_equal_within_float32(run(x[:rows]), expected(emulator, x)[:rows])


@pytest.fixture
def exported(tmp_path):
    model = saved(tmp_path / "model", "low-res-aqua")
    export([model], str(tmp_path / "out"), "torchscript")
    return torchscript(tmp_path / "out"), load_model(model).emulator


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_batch_and_every_memory_layout_gives_the_same(exported, dtype):
    run, _ = exported
    x = raw(4000).to(dtype)
    whole = run(x).double()
    for start in (0, 1999):
        assert_equal_within_float32(run(x[start : start + 1]), whole[start : start + 1])
        assert_equal_within_float32(run(x[start : start + 7]), whole[start : start + 7])
    fortran = x[:50].t().contiguous().t()
    assert not fortran.is_contiguous()
    assert_equal_within_float32(run(fortran), whole[:50])
    assert_equal_within_float32(run(x[:100:2]), whole[:100:2])


@pytest.mark.parametrize("layout", HOST_LAYOUTS)
def test_inputs_are_not_written_to(layout, tmp_path):
    export([saved(tmp_path / "model")], str(tmp_path / "out"), "torchscript", layout=layout)
    run, x = torchscript(tmp_path / "out"), HOST_LAYOUTS[layout].to_columns().of_columns(raw(5))
    for inputs in (x, x.float()):
        before, writes = inputs.clone(), inputs._version
        run(inputs)
        assert torch.equal(inputs, before)
        assert inputs._version == writes


def test_what_is_not_finite_counts_as_the_training_mean(exported):
    run, emulator = exported
    x = raw(6)
    bad = x.clone()
    places = [(0, 5), (1, INPUTS["state_ps"].start), (2, INPUTS["state_q0002"].start + 15), (3, 500), (4, 61)]
    for value, (row, column) in zip([torch.nan, torch.inf, torch.nan, -torch.inf, torch.nan], places, strict=True):
        bad[row, column] = value
        x[row, column] = emulator.transform.inputs.mean[column]
    assert_equal_within_float32(run(bad), expected(emulator, x))
    assert run(torch.full((2, INPUTS.width), torch.nan)).isfinite().all()


@pytest.mark.parametrize("scaling", [30.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outputs_are_finite_whatever_comes_in(scaling, dtype):
    coupled = CoupledEmulator([Emulator(low_res(scaling), build_network("mlp", TINY["mlp"], CHANNELS))], ALONE, HOST_LAYOUTS["kaggle556"])
    run = torch.jit.script(coupled.eval())
    largest = torch.finfo(dtype).max
    for value in (largest, -largest, 1e30, 0.0, torch.nan):
        found = run(torch.full((3, INPUTS.width), value, dtype=dtype))
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert (found[:, FLUX] >= 0).all()


def test_an_ensemble_is_weighted_by_column_before_the_physics(tmp_path):
    emulators = [load_model(saved(tmp_path / str(seed), seed=seed)).emulator for seed in range(3)]
    combination = Combination.of(np.random.default_rng(0).dirichlet(np.ones(3), TARGETS.width).T)
    # a column that falls back to the training mean
    combination.weights[:, 7], combination.constant[7] = 0.0, 3e-5
    coupled, x = CoupledEmulator(emulators, combination, HOST_LAYOUTS["kaggle556"]).eval(), raw(50)
    weights = combination.weights
    own = [emulator.tendencies(x) for emulator in emulators]
    mean = torch.from_numpy(combination.constant)
    for weight, values in zip(weights, own, strict=True):
        mean = mean + torch.from_numpy(weight) * values
    wanted = emulators[0].physics(x, mean)
    found = torch.jit.script(coupled)(x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    assert (found[:, 7] == 3e-5).all()


def test_inputs_of_another_layout_are_refused(exported):
    run, _ = exported
    for width in (1, 555, 557):
        with pytest.raises(Exception, match=r"expected inputs \(rows, 556\)"):
            run(torch.zeros(2, width))
