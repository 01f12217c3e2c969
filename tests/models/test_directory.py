import json
import shutil

import pytest
import safetensors.torch
import torch

from leapray.climsim.schema import KAGGLE
from leapray.data.transform import ColumnScaling, Transform
from leapray.errors import UserError
from leapray.models.directory import load_info, load_model, save_model
from leapray.models.emulator import Emulator
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.columns import CHANNELS, INPUTS, TARGETS

CHOICE = Choice(name="mlp", options={"hidden": [4]})


def a_transform() -> Transform:
    def scaling(width: int) -> ColumnScaling:
        return ColumnScaling(torch.linspace(-1e-51, 3, width), torch.linspace(1, 2, width), torch.zeros(width), 30.0)

    return Transform(KAGGLE, scaling(INPUTS.width), scaling(TARGETS.width), "standard", {"months": ["0001-02"]})


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = build_network(CHOICE.name, CHOICE.options, CHANNELS)
    url = str(tmp_path / "model")
    save_model(url, network.state_dict(), CHOICE, a_transform(), recipe={"name": "test"}, history=[{"epoch": 0, "score": 0.1}])
    return url, Emulator(a_transform(), network).eval()


def edit(url: str, **changes) -> None:
    path = f"{url}/model.json"
    with open(path) as file:
        content = json.load(file)
    with open(path, "w") as file:
        json.dump(content | changes, file)


def test_a_loaded_model_predicts_the_same_bits(saved):
    url, emulator = saved
    model = load_model(url)
    x = torch.randn(6, INPUTS.width, dtype=torch.float64)
    assert torch.equal(model.emulator(x), emulator(x))
    assert not model.emulator.training
    assert model.info.recipe == {"name": "test"}
    assert model.info.history == [{"epoch": 0, "score": 0.1}]
    assert model.info.network == CHOICE
    assert model.info.versions["torch"] == torch.__version__


def test_saving_again_replaces_it(saved):
    url, _ = saved
    other = build_network("mlp", {"hidden": [3]}, CHANNELS)
    save_model(url, other.state_dict(), Choice(name="mlp", options={"hidden": [3]}), a_transform())
    assert torch.equal(load_model(url).emulator.network.body[0].weight, other.body[0].weight)


def test_a_model_may_lie_on_any_file_system():
    network = build_network(CHOICE.name, CHOICE.options, CHANNELS)
    save_model("memory://models/a", network.state_dict(), CHOICE, a_transform())
    assert torch.equal(load_model("memory://models/a").emulator.network.body[0].weight, network.body[0].weight)


def test_missing_files_are_named(saved, tmp_path):
    url, _ = saved
    with pytest.raises(UserError, match=r"elsewhere: not a model directory \(model.json is missing\)"):
        load_model(str(tmp_path / "elsewhere"))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        load_model(url)


def test_weights_of_another_save_are_refused(saved, tmp_path):
    url, _ = saved
    save_model(str(tmp_path / "other"), build_network(CHOICE.name, CHOICE.options, CHANNELS).state_dict(), CHOICE, a_transform())
    shutil.copy(tmp_path / "other" / "model.safetensors", url)
    with pytest.raises(UserError, match=r"does not belong to the model\.json beside it"):
        load_model(url)


def test_another_format_is_refused(saved):
    url, _ = saved
    edit(url, format=1)
    with pytest.raises(UserError, match=r"model\.json: of another format, 1, than this leapray's models; train the model again"):
        load_info(url)


def test_an_unknown_key_is_refused(saved):
    url, _ = saved
    edit(url, wieghts="x")
    with pytest.raises(UserError, match=r"model\.json: unknown key 'wieghts'"):
        load_info(url)


def test_weights_that_do_not_fit_are_described(tmp_path):
    url = str(tmp_path / "model")
    state = build_network("mlp", {"hidden": [4, 4]}, CHANNELS).state_dict()
    state["body.0.bias"] = state["body.0.bias"].double()
    save_model(url, state, Choice(name="mlp", options={"hidden": [5]}), a_transform())
    with pytest.raises(UserError) as error:
        load_model(url)
    assert "weights do not fit network 'mlp'" in str(error.value)
    assert "unknown body.2.bias, body.2.weight" in str(error.value)
    assert "body.0.weight is float32 (4, 556), expected float32 (5, 556)" in str(error.value)
    assert "body.0.bias is float64 (4,), expected float32 (5,)" in str(error.value)


def test_nothing_is_unpickled(saved):
    url, _ = saved
    with open(f"{url}/model.safetensors", "rb") as file:
        assert set(safetensors.torch.load(file.read())) == {
            "body.0.weight",
            "body.0.bias",
            "head.prediction.0.weight",
            "head.prediction.0.bias",
        }
