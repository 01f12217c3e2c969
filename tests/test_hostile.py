"""What comes from storage and from users with bad intent: one clear sentence, before memory, time or code is spent on it."""

import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from leapray import storage
from leapray.climsim.netcdf import Snapshot
from leapray.data.flat import read_piece, survey, to_table
from leapray.data.shards import FlatFile, Manifest, ShardFile, open_prepared, prepare_settings, read_shard, write_shard
from leapray.errors import UserError
from leapray.faults import told
from leapray.inference.weights import read_weights
from leapray.models.directory import load_info, load_model, save_model
from leapray.models.registry import build_network
from leapray.recipe import Choice, load_recipe
from leapray.training import checkpoint
from tests.columns import CHANNELS, INPUTS, TARGETS
from tests.models.test_directory import CHOICE, a_transform
from tests.samples import random_rows, recipe_values, sample_recipe, write_flat

ESCAPE = "\x1b[2Jevil\n"


def sentence(read: Callable[[], object], *parts: str) -> str:
    """What a user is told: one line of moderate length, without control characters, that holds these parts."""
    with pytest.raises(UserError) as error:
        read()
    said = str(error.value)
    assert said.isprintable()
    assert len(said) < 1500
    for part in parts:
        assert part in said
    return said


def test_a_told_name_is_short_and_commands_no_terminal() -> None:
    assert told(ESCAPE) == r"\x1b[2Jevil\n"
    assert told("température") == "température"
    assert told("x" * 10**6, 5) == "xxxxx..."
    # a name that is no UTF-8, as the file system gives it, and one that would be read from right to left
    assert told("a\udcff") == r"a\udcff"
    assert told("\u202egnp") == r"\u202egnp"


# recipes


def nested(first: str, line: str) -> str:
    return first + "".join(line.replace("N", str(n)).replace("M", str(n - 1)) for n in range(1, 10))


LISTS = nested("a0: &a0 [x]\n", f"aN: &aN [{','.join(['*aM'] * 10)}]\n")
MAPPINGS = nested("a0: &a0 {a: 1}\n", f"aN: &aN {{{','.join(f'k{key}: *aM' for key in range(10))}}}\n")
MERGES = nested("a0: &a0 {a: 1}\n", f"aN: &aN {{<<: [{','.join(['*aM'] * 10)}]}}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!!python/object/apply:os.system ['false']", "could not determine a constructor for the tag"),
        ("name: !ours {}", "could not determine a constructor for the tag"),
        (LISTS, "more than 100000 values"),
        (MAPPINGS, "more than 100000 values"),
        (MERGES, "more than 100000 values"),
        ("name: &a [*a]", "a value holds itself"),
        ("a: &a {<<: *a}", "a value holds itself"),
        ("&a {*a : 1}", "a value holds itself"),
        ("name: " + "[" * 500, "nested too deeply"),
        ("name: " + "{a: " * 60 + "1" + "}" * 60, "more than 40 sections in one another"),
        ("name: " + "9" * 5000, "digits"),
        ("epochs: " + "9" * 30, "a whole number is too large"),
        ("name: " + ":".join(["59"] * 50), "a whole number is too large"),
        ("name: 2001-99-99", "month must be in 1..12"),
        ("{" + ", ".join(f"k{number}: 1" for number in range(200)) + "}", "and 192 more mistakes"),
        (f"name: [{'x' * 100_000}]", "input should be a valid string"),
        (f'? "{"x" * 100_000}"\n: 1', "unknown key 'xxx"),
        ('"\\e[2J\\n": 1', r"unknown key '\x1b[2J\n'"),
    ],
)
def test_a_hostile_recipe(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    sentence(lambda: load_recipe(str(path)), "recipe.yaml: ", said)


@pytest.mark.parametrize("value", ["!!python/object/apply:os.system ['false']", "[" * 500, "2001-99-99", "9" * 30, "&a [*a]"])
def test_a_hostile_override(tmp_path: Path, value: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values(tmp_path)))
    sentence(lambda: load_recipe(str(path), [f"name={value}"]), "--set ", "not valid YAML")


def test_aliases_of_a_usual_size_are_written_out(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    shared = "finetune: {base: b, directory: d, variants: {a: {training: &t {epochs: 2}}, b: {training: {<<: *t, seed: 1}}}}\n"
    path.write_text(yaml.safe_dump(recipe_values(tmp_path)) + shared)
    assert load_recipe(str(path)).variant("b").training.epochs == 2


@pytest.mark.parametrize("name", ["../../x", "/x", "x/y", "..", "", "x\n", "x\x1b", "Ünicode"])
def test_names_that_become_folders_stay_in_theirs(tmp_path: Path, name: str) -> None:
    values = recipe_values(tmp_path)
    variants = {"base": "b", "directory": "d", "variants": {name: {"training": {"epochs": 2}}}}
    sources = {**values["data"], "sources": {name: values["data"]["sources"]["low_res"]}}
    members = {"directory": "d", "members": [{"name": name, "validation": "v"}]}
    for number, change in enumerate([{"finetune": variants}, {"data": sources}, {"ensemble": members}]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(values | change))
        sentence(lambda path=path: load_recipe(str(path)), "becomes a folder")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket/x",
        "https://user:hunter2@host/x",
        "https://bucket.s3.amazonaws.com/x.parquet?X-Amz-Credential=a&X-Amz-Signature=hunter2",
        "https://storage.googleapis.com/x.parquet?X-Goog-Signature=hunter2",
        "https://account.blob.core.windows.net/x.parquet?sv=1&sig=hunter2",
        "simplecache::https://host/x?token=hunter2",
        "https://host/x?api_key=hunter2",
    ],
)
def test_no_url_carries_a_secret_into_a_recipe_or_a_run(url: str) -> None:
    assert "hunter2" not in sentence(lambda: storage.filesystem(url), "which none may")


# files that are none, and too large ones


@pytest.mark.parametrize("reading", [storage.read_bytes, storage.read_json, storage.open_input, load_recipe])
def test_devices_and_pipes_behind_links_are_not_read(tmp_path: Path, reading: Callable[[str], object]) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("zero", "pipe"):
        sentence(lambda name=name: reading(str(tmp_path / name)), f"{name}: is a device or a pipe")


def test_a_file_of_more_bytes_than_it_can_have_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.touch()
    os.truncate(path, 1 << 40)
    sentence(lambda: storage.read_json(str(path)), "has 1099511627776 bytes, expected 134217728 at the most")
    sentence(lambda: load_recipe(str(path)), "has 1099511627776 bytes, expected 4194304 at the most")


def test_json_that_is_nested_for_ever(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    sentence(lambda: storage.read_json(str(tmp_path / "x.json")), "nested too deeply")


def test_links_to_folders_are_not_followed_round_in_circles(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"")
    assert storage.list_files(str(tmp_path), ".parquet") == [str(tmp_path / "x.parquet")]


# model directories


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(str(tmp_path / "model"), build_network(CHOICE.name, CHOICE.options, CHANNELS).state_dict(), CHOICE, a_transform())
    return tmp_path / "model"


def edit(model: Path, value: object, *keys: str) -> None:
    content: Any = json.loads((model / "model.json").read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (model / "model.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("schema_hash",), ESCAPE),
        (("schema_hash",), "x" * 10**6),
        (("network", "name"), ESCAPE),
        (("network", "options"), {"x" * 10**6: 1}),
        (("history",), 5),
        (("transform", "variables"), {"name": ESCAPE, "inputs": [ESCAPE], "targets": [ESCAPE]}),
        (("transform", "scaling"), {}),
        (("transform", "features"), 5),
        (("transform", "fitted_on"), 5),
        (("transform", "inputs", "clip"), float("nan")),
        (("transform", "inputs", "clip"), -1),
        (("transform", "inputs", "mean"), [0.0]),
        (("transform", "inputs", "mean"), [10**400] * INPUTS.width),
        (("transform", "inputs", "mean"), [float("nan")] * INPUTS.width),
        (("transform", "targets", "scale"), [0.0] * TARGETS.width),
    ],
)
def test_a_hostile_description_of_a_model(model: Path, keys: tuple[str, ...], value: object) -> None:
    edit(model, value, *keys)
    sentence(lambda: load_model(str(model)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"hidden": [10**9]}),
        ("mlp", {"hidden": [10**18]}),
        ("mlp", {"hidden": [10**30]}),
        ("mlp", {"hidden": [1] * 5_000}),
        ("low-res-aqua", {"lstm_hidden": 10**9}),
        ("low-res-aqua", {"lstm_hidden": 1, "lstm_layers": 10**9}),
        ("low-res-high-res", {"layers": 10**9}),
    ],
)
def test_a_network_of_impossible_size_is_refused_before_it_takes_memory(model: Path, name: str, options: dict[str, Any]) -> None:
    edit(model, {"name": name, "options": options}, "network")
    sentence(lambda: load_model(str(model)), f"network {name} with options")
    sentence(lambda: build_network(name, options, CHANNELS), f"network {name} with options")


def test_a_large_network_without_the_weights_for_it_takes_no_memory(model: Path) -> None:
    # 36 GB
    edit(model, [95_000, 95_000], "network", "options", "hidden")
    sentence(lambda: load_model(str(model)), "weights do not fit network 'mlp'", "(4, 556), expected float32 (95000, 556)")


def test_counting_weights_leaves_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.nn.Linear(INPUTS.width, TARGETS.width).weight
    torch.manual_seed(0)
    assert torch.equal(build_network("linear", {}, CHANNELS).get_parameter("map.weight"), expected)


def tensors(header: dict[str, Any], content: bytes = bytes(4)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def one(shape: list[int], dtype: str = "F32", offsets: tuple[int, int] = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10**8) + b"{" * 100,
        tensors({"a": one([2**40, 2**40])}),
        tensors({"a": one([2**63 + 5, 0], offsets=(0, 0))}, b""),
        tensors({"a": one([1]), "b": one([1])}),
        tensors({"a": one([100], offsets=(0, 400))}),
        tensors({"a": one([-1])}),
        tensors({"a": one([1] * 50_000)}),
        tensors({"a": one([8], "F4")}),
        tensors({"a": one([1], ESCAPE)}),
        tensors({ESCAPE: one([1])}),
        tensors({"x" * 10**6: one([1])}),
        b"\x80\x04\x95",
    ],
    ids=range(14),
)
def test_hostile_weights(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    edit(model, hashlib.sha256(content).hexdigest(), "weights_sha256")
    sentence(lambda: load_model(str(model)), "model.safetensors: ")


def test_links_out_of_a_model_directory_tell_nothing_of_what_they_lead_to(tmp_path: Path, model: Path) -> None:
    (tmp_path / "secret").write_text('{"password": "hunter2"} hunter2')
    for name in ("model.safetensors", "model.json"):
        (model / name).unlink()
        (model / name).symlink_to(tmp_path / "secret")
        assert "hunter2" not in sentence(lambda: load_model(str(model)), name)


def test_weights_are_not_read_beyond_what_the_network_holds(model: Path) -> None:
    os.truncate(model / "model.safetensors", 1 << 40)
    sentence(lambda: load_model(str(model)), "has 1099511627776 bytes")


@pytest.mark.parametrize("name", ["os:system", "this:x", "idlelib.idle:Net"])
def test_a_model_does_not_have_modules_of_python_imported(model: Path, name: str) -> None:
    edit(model, name, "network", "name")
    before = set(sys.modules)
    sentence(lambda: load_info(str(model)), f"names network {name} of Python's own module")
    assert not {"this", "idlelib.idle"} & (set(sys.modules) - before)


@pytest.mark.parametrize("place", [".", "below", "package"])
def test_code_that_came_with_a_model_is_not_run(model: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Whether the command is given in the model's directory, or in one above it, where folders are packages without a file of their own."""
    (model / place).mkdir(exist_ok=True)
    (model / place / "came_along.py").write_text("raise SystemExit('it ran')")
    dotted = {".": "", "below": "below.", "package": "model.package."}[place]
    monkeypatch.chdir(model.parent if place == "package" else model)
    edit(model, f"{dotted}came_along:Net", "network", "name")
    sentence(lambda: load_model(str(model)), "whose code", "came with it and is not run; look at it")


@pytest.mark.parametrize(("module", "packages"), [("users_own", ()), ("users_package.folder.own", ("users_package",))])
def test_a_network_of_the_users_own_is_still_found_beside_the_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, module: str, packages: tuple[str, ...]
) -> None:
    """Also in a package of which some folders have no file of their own, when nothing has imported it before."""
    file = model.parent / f"{module.replace('.', '/')}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    for package in packages:
        (model.parent / package / "__init__.py").touch()
    file.write_text(
        "from pydantic import BaseModel\nfrom torch import nn\n"
        "class Net(nn.Linear):\n    class Options(BaseModel): pass\n    def __init__(self, options, channels): super().__init__(556, 368)\n"
    )
    monkeypatch.chdir(model.parent)
    choice = Choice(name=f"{module}:Net")
    save_model(str(model), build_network(choice.name, {}, CHANNELS).state_dict(), choice, a_transform())
    for imported in [name for name in sys.modules if name.split(".")[0] == module.split(".")[0]]:
        monkeypatch.delitem(sys.modules, imported)
    assert load_model(str(model)).info.network == choice


# ensembles


@pytest.mark.parametrize("name", ["../../x", "/x", "..", ".", "", ESCAPE, "x" * 300])
def test_members_of_an_ensemble_write_only_below_its_predictions(tmp_path: Path, name: str) -> None:
    groups = {"all": [variable.name for variable in TARGETS.variables]}
    member = {"name": name, "model": "model", "weights": {"all": 1.0}}
    storage.write_json(str(tmp_path / "ensemble.json"), {"method": "fixed", "groups": groups, "members": [member]})
    sentence(lambda: read_weights(str(tmp_path / "ensemble.json")), "becomes a folder, expected one without slashes")
    storage.write_json(str(tmp_path / "good.json"), {"method": "fixed", "groups": groups, "members": [member | {"name": "run-1.5 (a)"}]})
    assert read_weights(str(tmp_path / "good.json")).members[0].name == "run-1.5 (a)"


# checkpoints and prepared data


@pytest.mark.parametrize(
    "state",
    [
        "5",
        '{"$tensor": []}',
        '{"$float": "x"}',
        '{"$float": []}',
        '{"$tuple": 5}',
        '{"$items": [1]}',
        '{"$items": [[[1], 2]]}',
        "[" * 10**5,
    ],
)
def test_a_hostile_checkpoint(tmp_path: Path, state: str) -> None:
    checkpoint.save(str(tmp_path), {"a": torch.zeros(1)})
    (tmp_path / checkpoint.STATE).write_text(state)
    sentence(lambda: checkpoint.load(str(tmp_path)))


def manifest(url: Path, *files: ShardFile | FlatFile) -> Path:
    recipe = sample_recipe(url)
    home = url / "prepared" / "train" / "low_res"
    home.mkdir(parents=True)
    storage.write_json(str(url / "prepared" / "transform.json"), a_transform().to_dict())
    storage.write_json(str(url / "prepared" / "prepare.json"), prepare_settings(recipe.data))
    common = {"months": "", "transform": a_transform().digest(), "seed": 0, "input": "", "bad_rows": "refuse", "checksum": None}
    for split in ("train", "validation"):
        place = url / "prepared" / split / "low_res"
        Manifest(str(place), "low_res", "low-res", split, files=files, dropped={}, dropped_rows=0, inexact={}, **common).save()
    return home / "manifest.json"


@pytest.mark.parametrize("name", ["../../../x.parquet", "/etc/passwd", "http://127.0.0.1/x", "s3://other/x", "", "..", ESCAPE, "x" * 10**6])
def test_a_manifest_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    manifest(tmp_path, ShardFile(name, 1, 1))
    sentence(lambda: open_prepared(sample_recipe(tmp_path).data), "manifest.json: not a manifest of prepared data")


@pytest.mark.parametrize("rows", [-1, 10**15, 10**30])
def test_a_manifest_that_lies_about_rows(tmp_path: Path, rows: int) -> None:
    manifest(tmp_path, ShardFile("x.parquet", rows, 1))
    sentence(lambda: open_prepared(sample_recipe(tmp_path).data), "manifest.json: not a manifest of prepared data")


def test_a_manifest_that_lists_a_shard_twice(tmp_path: Path) -> None:
    manifest(tmp_path, ShardFile("x.parquet", 1, 1), ShardFile("x.parquet", 1, 1))
    sentence(lambda: open_prepared(sample_recipe(tmp_path).data), "lists x.parquet more than once")


def test_a_manifest_of_flat_files_stays_below_their_source(tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", stop="0001-03")
    write_flat(tmp_path / "other", stop="0001-03")
    for number, (folder, change) in enumerate([("flat", ""), ("other", ""), ("flat", "/../other")]):
        (piece,) = survey(str(tmp_path / folder)).pieces()
        path = piece.path.replace("/flat/", f"/flat{change}/")
        home = tmp_path / str(number)
        home.mkdir()
        (home / "flat").symlink_to(tmp_path / "flat")
        path = path.replace(str(tmp_path), str(home))
        manifest(home, FlatFile(type(piece)(**{**vars(piece), "path": path}), piece.rows))
        if number == 0:
            assert open_prepared(sample_recipe(home).data).split("train")[0].rows == piece.rows
        else:
            sentence(lambda home=home: open_prepared(sample_recipe(home).data), "which is not below the path of source low_res")


def test_settings_of_prepared_data_that_are_none(tmp_path: Path) -> None:
    manifest(tmp_path, ShardFile("x.parquet", 1, 1))
    (tmp_path / "prepared" / "prepare.json").write_text('{"sources": {"low_res": 5}}')
    sentence(lambda: open_prepared(sample_recipe(tmp_path).data), "does not hold the settings of prepared data")


def shard(rows: int) -> dict[str, np.ndarray]:
    return {
        "inputs": np.zeros((rows, INPUTS.width), np.float32),
        "targets": np.zeros((rows, TARGETS.width), np.float32),
        "row": np.arange(rows),
    }


def changed(column: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(column), column, values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("inputs", pa.array([bytes(10)] * 3, pa.binary(10))), "inputs fixed_size_binary[10]"),
        (changed("inputs", pa.array([b"x"] * 3)), "inputs binary"),
        (changed("row", pa.array(["x"] * 3)), "row string"),
        (changed("row", pa.array([1.5] * 3)), "row double"),
        (changed("row", pa.array([1, None, 3])), "column row has 1 empty values"),
        (lambda table: table.drop(["row"]), "expected inputs and targets"),
    ],
)
def test_a_hostile_shard(tmp_path: Path, change: Callable[[pa.Table], pa.Table], said: str) -> None:
    path = tmp_path / "x.parquet"
    write_shard(str(path), shard(3))
    pq.write_table(change(pq.read_table(path)), path, compression="none", use_dictionary=False)
    sentence(lambda: read_shard(str(path)), "x.parquet: not a readable shard", said)


def test_a_shard_takes_no_more_memory_than_its_file_has_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_shard(str(path), shard(2000))
    assert len(read_shard(str(path))["row"]) == 2000
    pq.write_table(pq.read_table(path), path, compression="zstd", use_dictionary=False)
    sentence(lambda: read_shard(str(path)), f"2000 rows do not fit into {path.stat().st_size} bytes")
    # one value of a dictionary for all rows
    table = pq.read_table(path).set_column(0, "inputs", pa.array([bytes(10**5)] * 2000, pa.binary(10**5)))
    pq.write_table(table, path, compression="none")
    sentence(lambda: read_shard(str(path)), f"2000 rows do not fit into {path.stat().st_size} bytes")


# flat files


def read_flat(path: Path) -> int:
    return sum(len(block.row) for piece in survey(str(path)).pieces() for block in read_piece(piece, kind="low-res"))


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_texts_that_grow_when_they_are_decoded(tmp_path: Path, use_dictionary: bool) -> None:
    table = to_table(Snapshot("low-res", 0, random_rows(2)))
    for column, place in (("sample_id", 0), ("kind", 1)):
        large = table.set_column(place, column, pa.array(["x" * 10**7] * 2))
        path = tmp_path / f"{column}.parquet"
        pq.write_table(large, path, compression="zstd", use_dictionary=use_dictionary)
        assert path.stat().st_size < 2e6
        sentence(lambda path=path: read_flat(path), f"column {column} of row group 0 takes", "expected 1024 a row")


def test_kinds_and_columns_that_would_command_a_terminal(tmp_path: Path) -> None:
    table = to_table(Snapshot("low-res", 0, random_rows(2)))
    path = tmp_path / "x.parquet"
    pq.write_table(table.set_column(1, "kind", pa.array([ESCAPE] * 2)), path)
    sentence(lambda: read_flat(path), r"column kind holds \x1b[2Jevil\n, expected")
    pq.write_table(table.append_column(ESCAPE, pa.array([1, 2])), path)
    notices: list[str] = []
    survey(str(path), notice=notices.append)
    assert len(notices) == 1
    assert notices[0].isprintable()


def test_a_footer_that_says_it_is_gigabytes_long(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.touch()
    os.truncate(path, 1 << 33)
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(struct.pack("<I", 2**32 - 100) + b"PAR1")
    sentence(lambda: read_flat(path), "x.parquet: ", "its footer has")


def test_a_row_of_a_csv_that_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    names = [*INPUTS.columns, *TARGETS.columns]
    path.write_text(",".join(["sample_id", *names]) + "\n" + ",".join(["a", *["1.0"] * len(names)]) + "\n")
    os.truncate(path, 1 << 33)
    sentence(lambda: read_flat(path), "x.csv: ", "has no end in 16777216 bytes")
