"""Variable sets: published widths and orders, derived inputs by hand, and what is refused."""

import io
import json

import netCDF4
import numpy as np
import pyarrow as pa
import pytest
import torch

from leapray.climsim.grid import pressure
from leapray.climsim.netcdf import read_pair
from leapray.climsim.pairs import find_pairs
from leapray.climsim.schema import KAGGLE, V2_RH, VARIABLE_SETS, Layout, VariableSet, common, variable_set
from leapray.climsim.synthetic import synthesize
from leapray.data.clean import Tally, clean
from leapray.data.column import ColumnOf
from leapray.data.features import channels, check_features
from leapray.data.fitting import Fitting
from leapray.data.flat import Block
from leapray.data.moments import Moments
from leapray.data.transform import Transform, departure_candidates
from leapray.errors import UserError
from leapray.models.emulator import Emulator, Physics
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.data.humidity_by_hand import saturation

# as ClimSim's data_utils.py lists them
SURFACE = (
    "state_ps pbuf_SOLIN pbuf_LHFLX pbuf_SHFLX pbuf_TAUX pbuf_TAUY pbuf_COSZRS cam_in_ALDIF cam_in_ALDIR cam_in_ASDIF cam_in_ASDIR "
    "cam_in_LWUP cam_in_ICEFRAC cam_in_LANDFRAC cam_in_OCNFRAC"
)
PUBLISHED = {
    "v2_kaggle": (
        f"state_t state_q0001 state_q0002 state_q0003 state_u state_v {SURFACE} cam_in_SNOWHLAND pbuf_ozone pbuf_CH4 pbuf_N2O",
        556,
    ),
    "v2_rh": (
        f"state_t state_rh state_q0002 state_q0003 state_u state_v pbuf_ozone pbuf_CH4 pbuf_N2O {SURFACE} cam_in_SNOWHICE cam_in_SNOWHLAND",
        557,
    ),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A synthetic pair of files."""
    folder = tmp_path_factory.mktemp("pairs")
    synthesize(str(folder), "low-res", steps=1)
    return find_pairs(str(folder))[0]


def test_sets_are_as_published():
    assert PUBLISHED.keys() == VARIABLE_SETS.keys()
    for name, (inputs, width) in PUBLISHED.items():
        found = variable_set(name)
        assert list(found.inputs.names) == inputs.split()
        assert found.inputs.width == width
        assert found.targets.width == 368


def test_a_row_holds_what_inputs_are_made_of_bit_for_bit(pair):
    snapshot = read_pair(pair, variables=V2_RH)
    with netCDF4.Dataset(pair.mli) as before, netCDF4.Dataset(pair.mlo) as after:
        assert snapshot.rows.shape == (384, 557 + 368)
        for name in V2_RH.raw.names:
            values = np.atleast_2d(np.asarray(before[name][:].data))
            np.testing.assert_array_equal(snapshot.rows[:, V2_RH.raw[name]], values.T)
        tendency = (after["state_u"][:].data - before["state_u"][:].data) / 1200
        at = V2_RH.targets["ptend_u"]
        np.testing.assert_array_equal(snapshot.rows[:, 557 + at.start : 557 + at.stop], tendency.T)


def test_relative_humidity_and_snow_over_ice_by_hand(pair):
    rows = read_pair(pair, variables=V2_RH).rows[:60]
    raw, targets = np.ascontiguousarray(rows[:, :557]), np.ascontiguousarray(rows[:, 557:])
    fitting = Fitting(V2_RH, Choice(name="standard", options={"clip": None}))
    columns = fitting.columns(raw, targets)
    t, q, ps = (raw[:, V2_RH.raw[name]] for name in ("state_t", "state_q0001", "state_ps"))
    humidity = q / np.vectorize(saturation)(t, pressure(ps[:, 0]))
    np.testing.assert_allclose(columns[:, 60:120], humidity, rtol=1e-11)
    snow = raw[:, V2_RH.raw["cam_in_SNOWHICE"]][:, 0]
    assert (snow == 1e30).any()
    np.testing.assert_array_equal(columns[:, 555], np.where(snow == 1e30, 0.0, snow))
    scaled = fitting.fit(Moments.of(columns), {}).scale_inputs(torch.from_numpy(raw)).numpy()
    expected = (humidity - humidity.mean(axis=0)) / humidity.std(axis=0)
    np.testing.assert_allclose(scaled[:, 60:120], expected, rtol=2e-5, atol=2e-5)


def test_a_fill_value_of_snow_over_ice_leaves_no_row_out_and_others_do(pair):
    rows = read_pair(pair, variables=V2_RH).rows
    raw, targets = rows[:, :557].copy(), rows[:, 557:].copy()
    ids, keys = pa.array([str(row) for row in range(len(rows))]), np.arange(len(rows))
    tally = Tally.empty(V2_RH)
    (kept,) = clean([Block(raw, targets, ids, keys)], "f", "refuse", tally)
    np.testing.assert_array_equal(kept.inputs, raw)
    raw[3, V2_RH.raw["cam_in_SNOWHICE"]], raw[5, V2_RH.raw["state_ps"]] = np.nan, 1e30
    (kept,) = clean([Block(raw, targets, ids, keys)], "f", "drop", tally)
    assert sorted(set(keys) - set(kept.row)) == [3, 5]
    assert tally.dropped() == {"cam_in_SNOWHICE": {"NaN": 1}, "state_ps": {"fill value": 1}}


def test_departures_and_physics_follow_the_names_of_the_set(pair):
    # vapour is not an input of v2_rh, so its state cannot be taken back from scaled inputs
    assert {column.rpartition("_")[0] for column in departure_candidates(V2_RH)} == {"ptend_q0002", "ptend_q0003"}
    rows = read_pair(pair, variables=V2_RH).rows[:20]
    raw, targets = torch.from_numpy(rows[:, :557].copy()), torch.full((20, 368), -1e9, dtype=torch.float64)
    found = Physics(V2_RH)(raw, targets)
    at, state = V2_RH.targets["ptend_q0001"], V2_RH.raw["state_q0001"]
    np.testing.assert_array_equal(found[:, at.start + 12 : at.stop], -raw[:, state.start + 12 : state.stop] / 1200)
    kaggle = raw.index_select(1, torch.from_numpy(V2_RH.raw.places(KAGGLE.raw.columns)))
    assert torch.equal(found, Physics(KAGGLE)(kaggle, targets))


def test_every_network_takes_another_set(pair):
    rows = read_pair(pair, variables=V2_RH).rows[:30]
    raw, targets = np.ascontiguousarray(rows[:, :557]), np.ascontiguousarray(rows[:, 557:])
    fitting = Fitting(V2_RH, Choice(name="standard"), ["relative_humidity"])
    transform = fitting.fit(Moments.of(fitting.columns(raw, targets)), {})
    again = Transform.from_dict(transform.to_dict())
    x = transform.scale_inputs(torch.from_numpy(raw))
    assert torch.equal(x, again.scale_inputs(torch.from_numpy(raw)))
    assert x.shape == (30, 557 + 60)
    sizes = {
        "low-res-aqua": {"encoder": [8], "lstm_hidden": 4, "lstm_layers": 1, "gru_hidden": 2, "head": [8]},
        "low-res-high-res": {"embedding": 6, "hidden": 4, "layers": 1, "head": 8},
        "mlp": {"hidden": [8]},
        "linear": {},
    }
    for name, options in sizes.items():
        network = build_network(name, options, transform.channels).eval()
        assert network(x).shape == (30, 368)
    # nine profiles and the feature after the six of the state, then the scalars
    channels = build_network("low-res-aqua", sizes["low-res-aqua"], transform.channels).get_submodule("channels")(x)
    assert channels.shape == (30, 60, 27)
    assert torch.equal(channels[:, :, 1], x[:, 60:120])
    assert torch.equal(channels[:, :, 6], x[:, 557:])
    assert torch.equal(channels[:, :, 10], x[:, 540:541].expand(-1, 60))


def test_a_set_of_ones_own_takes_known_variables_alone():
    own = variable_set("own", ["state_rh", "state_t"], ["ptend_t", "cam_out_PRECC"])
    assert own.raw.names == ("state_t", "state_q0001", "state_ps")
    assert own.targets.learned.all()
    assert own.targets.groups == {"temperature": ("ptend_t",), "surface": ("cam_out_PRECC",)}
    assert VariableSet.from_dict(own.to_dict(), "x") == own
    for inputs, targets, sentence in (
        (["state_tt"], ["ptend_t"], "variables.inputs: unknown variable 'state_tt'; did you mean"),
        (["ptend_t"], ["ptend_t"], "variables.inputs: unknown variable 'ptend_t'"),
        (["state_t", "state_t"], ["ptend_t"], "variables.inputs: state_t is given more than once"),
        (["state_t"], [], "variables.targets: expected at least one variable"),
    ):
        with pytest.raises(UserError, match=sentence):
            variable_set("own", inputs, targets)
    with pytest.raises(UserError, match="variables 'v9' are unknown; known sets are v2_kaggle, v2_rh"):
        variable_set("v9")


def test_a_feature_that_rows_cannot_give_is_refused():
    small = variable_set("own", ["state_t"], ["ptend_t"])
    with pytest.raises(UserError, match="'relative_humidity' needs state_q0001, which rows of variables own do not have"):
        check_features(["relative_humidity"], small)
    assert check_features(["relative_humidity"], KAGGLE) == ("relative_humidity",)


def test_rows_for_models_of_several_sets_hold_what_each_needs():
    both = common([KAGGLE, V2_RH, KAGGLE])
    assert both.raw == V2_RH.raw
    assert common([KAGGLE, KAGGLE]) is KAGGLE
    other = VariableSet("own", Layout(KAGGLE.inputs.variables), variable_set("own", ["state_t"], ["ptend_t"]).targets)
    with pytest.raises(UserError, match="v2_kaggle and own predict different targets"):
        common([KAGGLE, other])
    with pytest.raises(UserError, match="is of variables v2_rh, expected v2_kaggle; inputs differ in cam_in_SNOWHICE"):
        KAGGLE.require(V2_RH, "m")


def test_counts_of_a_set_without_exact_columns_add_up_after_json():
    dry = variable_set("dry", ["state_t", "state_ps"], ["ptend_t"])
    tally = Tally.empty(dry)
    tally.add(Tally.from_dict(json.loads(json.dumps(tally.to_dict())), dry))
    assert tally.inexact_rows() == {}


SMALL = {
    "no water": (["state_t", "state_ps"], ["ptend_t"]),
    "scalars only": (["state_ps", "pbuf_SOLIN"], ["cam_out_NETSW", "cam_out_FLWDS"]),
    "cloud liquid only": (["state_t", "state_q0002"], ["ptend_q0002"]),
    "all inputs computed": (["state_rh", "cam_in_SNOWHICE"], ["ptend_u"]),
}


@pytest.mark.parametrize("name", SMALL)
def test_an_emulator_of_a_small_set_is_the_same_in_every_form(name):
    own = variable_set("own", *SMALL[name])
    rng = np.random.default_rng(0)
    raw, targets = rng.uniform(0.1, 1, (30, own.raw.width)), rng.normal(size=(30, own.targets.width))
    raw[:, own.raw["state_ps"]] = 1e5
    fitting = Fitting(own, Choice(name="standard"))
    transform = fitting.fit(Moments.of(fitting.columns(raw, targets)), {})
    emulator = Emulator(transform, build_network("mlp", {"hidden": [4]}, transform.channels)).eval()
    x = torch.from_numpy(raw)
    with torch.no_grad():
        expected = emulator(x)
        assert torch.equal(torch.jit.script(emulator)(x), expected)
        file = io.BytesIO()
        torch.export.save(torch.export.export(emulator, (x,)), file)
        file.seek(0)
        torch.testing.assert_close(torch.export.load(file).module()(x), expected, rtol=1e-12, atol=1e-12)


def test_a_feature_sees_no_fill_value_of_snow_over_ice():
    own = variable_set("own", ["cam_in_SNOWHICE"], ["ptend_t"])
    at = own.raw["cam_in_SNOWHICE"].start
    raw = torch.zeros(3, own.raw.width, dtype=torch.float64)
    raw[:, at] = torch.tensor([0.5, 1e30, float(np.float32(1e30))])
    assert ColumnOf(own.raw, ["snowhice"])(raw).snowhice.flatten().tolist() == [0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("inputs", "targets", "sentence"),
    [
        (["state_t"], ["cam_out_PRECC", "ptend_t"], "profiles before scalars"),
        (["state_ps"], ["ptend_t"], "needs a profile among data.variables.inputs"),
    ],
)
def test_a_network_that_cannot_give_a_set_says_so(inputs, targets, sentence):
    with pytest.raises(UserError, match=sentence):
        build_network("low-res-high-res", {}, channels(variable_set("own", inputs, targets)))
