import sys
from pathlib import Path

import pytest
import torch

from leapray.errors import UserError
from leapray.models.low_res_aqua import LowResAqua
from leapray.models.registry import NETWORKS, build_network, network_options, users_modules
from leapray.recipe import Choice
from tests.columns import CHANNELS, with_features

OWN = """
import torch
from pydantic import BaseModel

class Narrow(torch.nn.Module):
    class Options(BaseModel):
        width: int = 368

    def __init__(self, options, channels):
        super().__init__()
        self.linear = torch.nn.Linear(channels.inputs.width, options.width)

    def forward(self, x):
        return self.linear(x)

class Bare(torch.nn.Module):
    pass
"""


SMALL = {
    "low-res-aqua": {"encoder": [8], "lstm_hidden": 4, "lstm_layers": 1, "gru_hidden": 2, "head": [8]},
    "low-res-high-res": {"embedding": 6, "hidden": 4, "layers": 1, "head": 8},
    "mlp": {"hidden": [8]},
}
"""Options of the networks that have sizes."""


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    """A user's module in the working directory."""
    (tmp_path / "my_networks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])
    yield "my_networks"
    sys.modules.pop("my_networks", None)


@pytest.mark.parametrize("name", NETWORKS.entries)
def test_every_network_maps_scaled_columns_to_scaled_targets(name):
    for features in (0, 1):
        network = build_network(name, SMALL.get(name, {}), with_features(features))
        assert network(torch.zeros(2, 556 + 60 * features)).shape == (2, 368)


@pytest.mark.parametrize("name", SMALL)
def test_a_confidence_head_adds_its_outputs_in_training_and_nothing_in_evaluation(name):
    torch.manual_seed(0)
    network = build_network(name, {**SMALL[name], "dropout": 0, "confidence": True}, CHANNELS)
    plain = build_network(name, {**SMALL[name], "dropout": 0}, CHANNELS)
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if ".confidence" not in key})
    x = torch.randn(2, 556)
    both = network(x)
    assert both.shape == (2, 736)
    predicted, expected_loss = both.split(368, dim=1)
    assert (predicted != expected_loss).all()
    torch.testing.assert_close(predicted, plain(x), rtol=0, atol=1e-6)
    both.square().sum().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []
    network.eval()
    scripted = torch.jit.script(network)
    torch.testing.assert_close(network(x), predicted, rtol=0, atol=1e-6)
    torch.testing.assert_close(scripted(x), predicted, rtol=0, atol=1e-6)
    assert scripted.train()(x).shape == (2, 736)


def test_options_reach_the_network():
    network = build_network("low-res-aqua", {"encoder": [8], "lstm_hidden": 5, "lstm_layers": 1, "gru_hidden": 2, "head": [8]}, CHANNELS)
    assert isinstance(network, LowResAqua)
    assert network.lstm.hidden_size == 5


def test_options_are_filled_in():
    assert network_options(Choice(name="mlp", options={"hidden": [3]})).model_dump() == {
        "hidden": (3,),
        "activation": "relu",
        "dropout": 0.0,
        "confidence": False,
    }


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("unet", {}, ["unet", "low-res-aqua, low-res-high-res, mlp"]),
        ("mlp", {"hiden": [1]}, ["hiden", "did you mean 'hidden'"]),
        ("mlp", {"hidden": [0]}, ["hidden.0", "0", "greater than 0"]),
        ("mlp", {"activation": "tanh"}, ["activation", "tanh", "relu"]),
        ("low-res-aqua", {"head": [0]}, ["head.0", "0", "greater than 0"]),
        ("low-res-high-res", {"pooling": "max"}, ["pooling", "max", "attention"]),
        ("linear", {"hidden": [3], "width": 1}, ["network linear takes no options, but network.options gives hidden, width"]),
        ("low-res-aqua", {"dropout": 1.5}, ["dropout", "1.5", "less than 1"]),
        ("low-res-aqua", {"encoder": []}, ["encoder", "at least one"]),
        ("nowhere.at_all:Net", {}, ["nowhere.at_all:Net", "cannot import"]),
        (":Net", {}, [":Net", "expected package.module:Class"]),
        ("collections:OrderedDict", {}, ["OrderedDict", "torch.nn.Module"]),
        ("torch.nn:Missing", {}, ["Missing", "torch.nn.Module"]),
    ],
)
def test_a_wrong_choice_is_named(name, options, words):
    with pytest.raises(UserError) as error:
        build_network(name, options, CHANNELS)
    assert all(word in str(error.value) for word in words), error.value


def test_a_network_of_the_users_own(own_network):
    network = build_network(f"{own_network}:Narrow", {}, with_features(1))
    assert network(torch.zeros(2, 616)).shape == (2, 368)
    assert network.training


def test_a_users_network_must_give_the_targets(own_network):
    with pytest.raises(UserError, match=r"my_networks:Narrow: gives \(2, 5\) for inputs \(2, 556\); expected \(2, 368\)"):
        build_network(f"{own_network}:Narrow", {"width": 5}, CHANNELS)
    with pytest.raises(UserError, match=r"Bare\.Options is not there"):
        build_network(f"{own_network}:Bare", {}, CHANNELS)


def test_a_network_of_the_working_directory_is_told_from_one_that_is_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_file.py").touch()
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "inner.py").touch()
    assert users_modules("my_file:Net") == [str(tmp_path / "my_file.py")]
    assert users_modules("my_package.inner:Net", "my_file:Net") == [str(tmp_path / "my_package"), str(tmp_path / "my_file.py")]
    assert users_modules("torch.nn:Linear", "mlp") == []


BROKEN = """
import torch
from pydantic import BaseModel

class Base(torch.nn.Module):
    Options = type("Options", (BaseModel,), {})

    def __init__(self, options, channels):
        super().__init__()
        self.layer = torch.nn.Linear(556, 368)

    def forward(self, x):
        return self.layer(x)

class Empty(Base):
    def __init__(self, options, channels):
        torch.nn.Module.__init__(self)

class Misspelt(Base):
    def __init__(self, options, channels):
        self.width = options.widht

class Fixed(Base):
    def forward(self, x):
        return self.layer(x.view(128, 556))

class Spare(Base):
    def __init__(self, options, channels):
        super().__init__(options, channels)
        self.spare = torch.nn.Linear(3, 3)
"""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Empty", "has no parameters to train"),
        ("Misspelt", "cannot be built \\(AttributeError: .*widht.*, .*line"),
        ("Fixed", r"fails on inputs \(2, 556\) \(RuntimeError: .*, broken.*\.py line 25\)"),
        ("Spare", r"does not depend on spare\.weight, spare\.bias; remove them"),
    ],
)
def test_what_is_wrong_with_a_users_network_is_told_in_a_sentence(tmp_path, monkeypatch, name, sentence):
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=sentence):
        build_network(f"broken:{name}", {}, CHANNELS)


@pytest.mark.parametrize("code", ["def f(:", "undefined", "raise SystemExit(3)", "import nothing_of_this_name"])
def test_a_users_file_that_cannot_be_imported_is_told_in_a_sentence(tmp_path, monkeypatch, code):
    module = f"unimportable_{abs(hash(code))}"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"network {module}:Net: cannot import {module} from"):
        build_network(f"{module}:Net", {}, CHANNELS)
