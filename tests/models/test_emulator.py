import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leapray.climsim.schema import KAGGLE
from leapray.data.features import FEATURES
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.data.scaling import ColumnScaling
from leapray.data.transform import Transform
from leapray.models.emulator import Emulator, Physics
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.columns import ABLATED, CHANNELS, EXACT, EXACT_SOURCE, INPUTS, LEARNED, TARGETS

WATER_STATE = slice(INPUTS["state_q0001"].start, INPUTS["state_q0003"].stop)
FLUX = slice(TARGETS["cam_out_NETSW"].start, TARGETS.width)
WATER_TENDENCY = slice(TARGETS["ptend_q0001"].start, TARGETS["ptend_q0003"].stop)


def columns(rows: int = 5, seed: int = 0) -> torch.Tensor:
    """Raw columns whose water spans many orders of magnitude and is never negative."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, INPUTS.width))
    x[:, WATER_STATE] = 10.0 ** rng.uniform(-51, -2, (rows, 180))
    return torch.from_numpy(x)


@pytest.fixture
def emulator() -> Emulator:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)

    def scaling(width: int) -> ColumnScaling:
        mean, scale = torch.randn(2, width, generator=generator, dtype=torch.float64)
        return ColumnScaling(mean, scale.exp(), torch.zeros(width))

    transform = Transform(KAGGLE, scaling(INPUTS.width), scaling(TARGETS.width), "standard", {})
    return Emulator(transform, build_network("mlp", {"hidden": [16]}, CHANNELS)).eval()


def test_prediction_is_unscaled_network_of_scaled_inputs(emulator):
    x = columns()
    scaled = ((x - emulator.transform.inputs.mean) / emulator.transform.inputs.scale).float()
    expected = emulator.network(scaled).double() * emulator.transform.targets.scale + emulator.transform.targets.mean
    torch.testing.assert_close(emulator.tendencies(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(emulator(x), emulator.physics(x, expected), rtol=1e-12, atol=1e-12)


def test_physics_by_hand():
    x, y = torch.zeros(1, INPUTS.width, dtype=torch.float64), torch.full((1, TARGETS.width), -1.0, dtype=torch.float64)
    x[0, INPUTS["state_q0001"]] = 12.0
    x[0, INPUTS["state_q0002"]] = 2400.0
    x[0, INPUTS["state_q0003"]] = 0.0
    y[0, TARGETS["ptend_q0001"].start + 20] = 0.5
    result = Physics(KAGGLE)(x, y)[0].numpy()
    variable = {name: result[TARGETS[name]] for name in ("ptend_t", "ptend_q0001", "ptend_q0002", "ptend_q0003", "ptend_u")}
    assert (variable["ptend_t"] == -1).all()
    assert (variable["ptend_q0001"][:12] == 0).all()
    assert variable["ptend_q0001"][20] == 0.5
    assert variable["ptend_q0001"][21] == -0.01
    assert (variable["ptend_q0002"][12:27] == -2).all()
    assert (variable["ptend_q0002"][27:] == -1).all()
    assert (variable["ptend_q0003"] == 0).all()
    assert not np.signbit(variable["ptend_q0003"]).any()
    assert (variable["ptend_u"][12:] == -1).all()
    assert (result[FLUX] == 0).all()


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1e-60, 1e-9, 1e-5, 1.0]))
def test_physics_holds_for_every_column(seed, size):
    x = columns(rows=2, seed=seed)
    y = size * torch.randn(2, TARGETS.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    result = Physics(KAGGLE)(x, y).numpy()
    state, tendency = x[:, WATER_STATE].numpy(), result[:, WATER_TENDENCY]
    assert (result[:, ABLATED] == 0).all()
    assert (result[:, EXACT] == -x[:, EXACT_SOURCE].numpy() / 1200).all()
    assert (tendency >= np.where(ABLATED[WATER_TENDENCY], 0, -state / 1200)).all()
    untouched = (result == y.numpy()) | EXACT | ABLATED
    assert untouched[:, : WATER_TENDENCY.start].all()
    assert untouched[:, WATER_TENDENCY.stop : FLUX.start].all()
    assert (result[:, FLUX] == np.maximum(y[:, FLUX].numpy(), 0)).all()
    assert (untouched[:, WATER_TENDENCY] | (tendency == -state / 1200)).all()


def test_physics_changes_neither_argument_and_is_done_once():
    x, y = columns(), torch.randn(5, TARGETS.width)
    x_before, y_before = x.clone(), y.clone()
    once = Physics(KAGGLE)(x, y)
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)
    assert torch.equal(Physics(KAGGLE)(x, once), once)


def test_tiny_cloud_keeps_float64(emulator):
    x = columns()
    x[:, EXACT_SOURCE] = 1.2345678901234567e-51
    assert (emulator(x)[:, EXACT] == (0 - 1.2345678901234567e-51) / 1200).all()


def test_float32_columns_are_taken_too(emulator):
    result = emulator(columns().float())
    assert result.dtype == torch.float64
    torch.testing.assert_close(result[:, LEARNED], emulator(columns())[:, LEARNED], rtol=1e-4, atol=1e-4)


def test_scripted_emulator_is_the_same(emulator, tmp_path):
    torch.jit.script(emulator).save(tmp_path / "emulator.pt")
    scripted = torch.jit.load(tmp_path / "emulator.pt")
    for rows in (1, 5):
        assert torch.equal(scripted(columns(rows)), emulator(columns(rows)))
        assert torch.equal(scripted.tendencies(columns(rows)), emulator.tendencies(columns(rows)))


@pytest.mark.parametrize("scaling", ["standard", "reference", "log-per-variable"])
def test_every_scaling_with_every_feature_scripts_and_exports_to_the_same_numbers(scaling, tmp_path):
    fitting = Fitting(KAGGLE, Choice(name=scaling), tuple(FEATURES))
    x, y = columns(40), torch.randn(40, TARGETS.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    transform = fitting.fit(Moments.of(fitting.columns(x.numpy(), y.numpy())), {})
    emulator = Emulator(transform, build_network("mlp", {"hidden": [16]}, transform.channels)).eval()
    torch.jit.script(emulator).save(tmp_path / "emulator.pt")
    rows = torch.export.Dim("rows")
    exported = torch.export.export(emulator, (100 * x,), dynamic_shapes=({0: rows},)).module()
    for other in (torch.jit.load(tmp_path / "emulator.pt"), exported):
        for count in (1, 300):
            raw = columns(count, seed=2) * 100
            torch.testing.assert_close(other(raw), emulator(raw), rtol=0, atol=0)
