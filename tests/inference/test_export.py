import io
import json
import subprocess
import sys

import fsspec
import numpy as np
import pytest
import torch

from leapray import storage
from leapray.climsim.schema import variable_set
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.errors import UserError
from leapray.inference.export.export import export
from leapray.inference.export.layouts import HOST_LAYOUTS, HostInputs
from leapray.models.directory import load_model, save_model
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.columns import ABLATED, EXACT, EXACT_SOURCE, INPUTS, LEARNED, TARGETS
from tests.inference.exported import assert_equal_within_float32, expected, low_res, raw, saved, torchscript
from tests.test_cli import assert_refused, leapray

PROCESS = """
import json, sys
sys.modules["leapray"] = None
import numpy as np
import torch
for task in json.loads(sys.argv[1]):
    load = torch.jit.load if task["file"].endswith(".pt") else lambda path: torch.export.load(path).module()
    with torch.inference_mode():
        np.save(task["outputs"], load(task["file"])(torch.from_numpy(np.load(task["inputs"])).to(getattr(torch, task["dtype"]))).numpy())
assert not [name for name in sys.modules if name.startswith("leapray.")]
"""


def test_files_run_in_a_process_without_leapray(tmp_path):
    model, x = saved(tmp_path / "model"), raw(9)
    tasks = []
    for form, layout in (("torchscript", "kaggle556"), ("torchscript", "v2_rh557"), ("torch-export", "v2_rh557")):
        out = tmp_path / f"{form}-{layout}"
        export([model], str(out), form, layout=layout)
        np.save(inputs := tmp_path / f"{layout}.npy", HostInputs(HOST_LAYOUTS[layout], INPUTS).of_columns(x).numpy())
        for file in json.loads((out / "emulator.json").read_text())["files"]:
            for entry in file["entries"]:
                outputs = out / f"{entry['inputs']}.npy"
                tasks.append({"file": str(out / file["name"]), "inputs": str(inputs), "outputs": str(outputs), "dtype": entry["inputs"]})
    subprocess.run([sys.executable, "-I", "-c", PROCESS, json.dumps(tasks)], cwd=tmp_path, check=True)
    wanted = expected(load_model(model).emulator, x)
    assert len(tasks) == 6
    for task in tasks:
        found = torch.from_numpy(np.load(task["outputs"]))
        assert found.dtype == getattr(torch, task["dtype"])
        if task["dtype"] == "float64":
            assert_equal_within_float32(found, wanted)
            assert (found[:, EXACT] == (0 - x[:, EXACT_SOURCE]) / 1200).all()
        else:
            # state_q0002_14 is about 1e-48 and vanishes in float32, which an untrained network does not ignore
            error = ((found - wanted)[:, LEARNED] / low_res().targets.scale[LEARNED]).square().mean()
            assert 0 < error < 1e-2
        assert (found[:, ABLATED] == 0).all()


def test_models_are_exported_as_their_mean_or_by_the_weights_of_an_ensemble(tmp_path):
    models = [saved(tmp_path / "runs" / name / "model", seed=seed) for seed, name in enumerate(("base", "swa", "ema"))]
    x, emulators = raw(20), [load_model(model).emulator for model in models]

    def wanted(weights: list[float]) -> torch.Tensor:
        mean = sum(weight * emulator.tendencies(x) for weight, emulator in zip(weights, emulators, strict=True))
        return emulators[0].physics(x, mean)

    export(models, str(tmp_path / "mean"), "torchscript")
    assert_equal_within_float32(torchscript(tmp_path / "mean")(x), wanted([1 / 3] * 3))
    members = [
        {"name": name, "model": model, "weights_sha256": load_model(model).info.weights_sha256, "weights": {"all": weight}}
        for name, model, weight in zip(("base", "swa", "ema"), models, (0.7, 0.0, 0.3), strict=True)
    ]
    groups = {"all": [variable.name for variable in TARGETS.variables]}
    storage.write_json(str(tmp_path / "ensemble.json"), {"method": "solved", "groups": groups, "members": members})
    done = export(models, str(tmp_path / "weighted"), "torchscript", weights=str(tmp_path / "ensemble.json"))
    assert done.members == 2
    assert_equal_within_float32(torchscript(tmp_path / "weighted")(x), wanted([0.7, 0.0, 0.3]))
    told = json.loads((tmp_path / "weighted" / "emulator.json").read_text())["members"]
    assert [(member["name"], member["weights"]["ptend_t"]) for member in told] == [("base", 0.7), ("ema", 0.3)]
    assert told[1]["weights_sha256"] == members[2]["weights_sha256"]
    alone = export([], str(tmp_path / "alone"), "torchscript", weights=str(tmp_path / "ensemble.json"))
    assert alone.members == 2
    torch.testing.assert_close(torchscript(tmp_path / "alone")(x), torchscript(tmp_path / "weighted")(x), rtol=0, atol=0)


def test_the_json_says_what_goes_in_and_comes_out(tmp_path):
    export([saved(tmp_path / "model")], str(tmp_path / "out"), "torch-export", layout="v2_rh557")
    told = json.loads((tmp_path / "out" / "emulator.json").read_text())
    assert told["layout"] == "v2_rh557"
    assert told["step_seconds"] == 1200
    assert [(file["name"], file["entries"]) for file in told["files"]] == [
        (f"emulator.{dtype}.pt2", [{"inputs": dtype, "outputs": dtype}]) for dtype in ("float32", "float64")
    ]
    inputs = {variable.pop("name"): variable for variable in told["inputs"]["variables"]}
    assert told["inputs"]["width"] == 557
    assert inputs["state_rh"] | {"long_name": ""} == {"units": "1", "long_name": "", "start": 60, "stop": 120}
    assert inputs["cam_in_SNOWHICE"]["start"] == 555
    outputs = told["outputs"]["variables"]
    assert [variable["name"] for variable in outputs] == [variable.name for variable in TARGETS.variables]
    assert outputs[-1]["stop"] == told["outputs"]["width"] == 368
    assert outputs[0]["units"] == "K/s"
    assert any("SNOWHICE is not used" in line for line in told["inside"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "emulator.json",
        "selftest.npz",
        "emulator.float32.pt2",
        "emulator.float64.pt2",
    }


def test_the_self_test_holds_for_what_was_written_and_shows_another_model(tmp_path):
    export([saved(tmp_path / "model")], str(tmp_path / "out"), "torchscript")
    export([saved(tmp_path / "other", seed=1)], str(tmp_path / "another"), "torchscript")
    with np.load(tmp_path / "out" / "selftest.npz") as test:
        inputs, outputs, tolerance = (test[name] for name in ("inputs", "outputs", "tolerance"))
        outputs_float32 = test["outputs_float32"]
    assert np.isnan(inputs).sum() == np.isinf(inputs).sum() == 1
    np.testing.assert_allclose(inputs[0], low_res().inputs.mean, rtol=1e-12)
    own, other = torchscript(tmp_path / "out"), torchscript(tmp_path / "another")
    for run, good in ((own, True), (other, False)):
        close = np.abs(run(torch.from_numpy(inputs)).numpy() - outputs) <= tolerance + 1e-6 * np.abs(outputs)
        assert close.all() == good
    np.testing.assert_allclose(own(torch.from_numpy(inputs).float()), outputs_float32, rtol=1e-4, atol=1e-6)


def test_an_export_takes_the_place_of_an_earlier_one(tmp_path):
    model, out = saved(tmp_path / "model", "linear"), tmp_path / "out"
    export([model], str(out), "torch-export")
    export([model], str(out), "torchscript")
    assert {path.name for path in out.iterdir()} == {"emulator.json", "selftest.npz", "emulator.pt"}


def test_a_destination_may_be_any_file_system(tmp_path):
    export([saved(tmp_path / "model", "linear")], "memory://exported/here", "torchscript")
    with fsspec.open("memory://exported/here/emulator.pt") as file:
        assert torch.jit.load(io.BytesIO(file.read()))(raw(2)).shape == (2, TARGETS.width)


USERS = """
import torch
from pydantic import BaseModel

class Net(torch.nn.Module):
    Options = type("Options", (BaseModel,), {})

    def __init__(self, options, channels):
        super().__init__()
        self.layer = torch.nn.Linear(556, 368)

    def forward(self, x):
        return self.layer(x)

class Open(Net):
    def forward(self, x):
        return self.layer(x) + len(open(__file__, "rb").read())

class Other(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.layer(x) if torch.jit.is_scripting() else self.layer(x)
"""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Open", r"network users_net:Open cannot be exported \(\w+: .*\)$"),
        ("Other", r"emulator\.pt: fails its self-test with float32 inputs"),
    ],
)
def test_a_users_network_that_cannot_be_exported_is_told_in_a_sentence(name, sentence, tmp_path, monkeypatch):
    (tmp_path / "users_net.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    model = saved(tmp_path / "model", f"users_net:{name}", options={})
    with pytest.raises(UserError, match=sentence) as refused:
        export([model], str(tmp_path / "out"), "torchscript")
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "out").glob("*"))


def test_a_users_network_is_exported_like_any_other(tmp_path, monkeypatch):
    (tmp_path / "users_net.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    model = saved(tmp_path / "model", "users_net:Net", options={})
    export([model], str(tmp_path / "out"), "torchscript")
    assert_equal_within_float32(torchscript(tmp_path / "out")(raw(5)), expected(load_model(model).emulator, raw(5)))


def test_a_place_of_other_things_is_refused_and_left_as_it_is(tmp_path):
    model, form = saved(tmp_path / "model", "linear"), "torchscript"
    other = saved(tmp_path / "other", "linear")
    with pytest.raises(UserError, match=r"other: holds model\.json and no export"):
        export([model], other, form)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "emulator.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"mine: holds an emulator\.json that is no export's"):
        export([model], str(tmp_path / "mine"), form)
    assert (tmp_path / "mine" / "emulator.json").read_text() == '{"a": 1}'
    with pytest.raises(UserError, match="is a file, expected a directory"):
        export([model], str(tmp_path / "mine" / "emulator.json"), form)
    # one's own files beside an export, and what an interrupted one left, are in nobody's way
    out = tmp_path / "out"
    export([model], str(out), form)
    (out / "README").write_text("")
    export([model], str(out), "torch-export")
    (out / "README").unlink()
    (out / "emulator.json").unlink()
    assert export([model], str(out), form).files == ("emulator.pt",)


def test_the_verb_exports_and_refuses(tmp_path, monkeypatch, capsys):
    model, out = saved(tmp_path / "model", "linear"), tmp_path / "out"
    assert leapray(monkeypatch, "export", model, out, "--format", "torchscript", "--layout", "v2_rh557") == 0
    assert f"wrote emulator.pt to {out}" in " ".join(capsys.readouterr().out.split())
    assert json.loads((out / "emulator.json").read_text())["layout"] == "v2_rh557"
    assert_refused(leapray(monkeypatch, "export", model, out, "--format", "onnx"), capsys, "onnx", "torchscript, torch-export")
    assert_refused(
        leapray(monkeypatch, "export", model, out, "--format", "torchscript", "--layout", "v4"), capsys, "'v4'", "kaggle556, v2_rh557"
    )
    assert_refused(leapray(monkeypatch, "export", tmp_path, out, "--format", "torchscript"), capsys, str(tmp_path), "not a model directory")
    assert_refused(leapray(monkeypatch, "export", model, "--format", "torchscript"), capsys, "MODEL... DEST")


def test_a_set_may_need_more_raw_columns_than_its_network_gets(tmp_path):
    own = variable_set("own", ["state_t", "state_rh"], ["ptend_t", "ptend_q0001", "ptend_q0002", "ptend_q0003"])
    rng = np.random.default_rng(0)
    raw = np.abs(rng.normal(size=(30, own.raw.width))) + 0.1
    raw[:, own.raw["state_t"]] += 250
    raw[:, own.raw["state_ps"]] += 1e5
    fitting = Fitting(own, Choice(name="standard"))
    transform = fitting.fit(Moments.of(fitting.columns(raw, rng.normal(size=(30, own.targets.width)))), {})
    choice = Choice(name="linear")
    save_model(str(tmp_path / "model"), build_network("linear", {}, transform.channels).state_dict(), choice, transform)
    emulator = load_model(str(tmp_path / "model")).emulator
    # by name: the place of each raw column among the competition's
    x = torch.zeros(30, INPUTS.width, dtype=torch.float64)
    x[:, torch.from_numpy(INPUTS.places(own.raw.columns))] = torch.from_numpy(raw)
    for form in ("torchscript", "torch-export"):
        export([str(tmp_path / "model")], str(tmp_path / form), form)
    with torch.no_grad():
        wanted = emulator(torch.from_numpy(raw))
        torch.testing.assert_close(torch.jit.load(tmp_path / "torchscript" / "emulator.pt")(x), wanted, rtol=1e-9, atol=1e-9)
