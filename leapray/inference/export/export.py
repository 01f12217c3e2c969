"""Export for coupling: one or several models as one file that runs without leapray, and TorchScript's without Python.

A destination holds ``emulator.pt`` (TorchScript) or ``emulator.float32.pt2`` and ``emulator.float64.pt2`` (torch.export), with
``emulator.json``, which says what goes in and comes out, and ``selftest.npz``. The json is written last, after the files were read
back and passed their self-test.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import leapray
from leapray import storage
from leapray.climsim.schema import STEP_SECONDS, Layout, common
from leapray.errors import UserError
from leapray.faults import told
from leapray.inference.export.emulator import CoupledEmulator, inside
from leapray.inference.export.layouts import HostLayout, host_layout
from leapray.inference.export.selftest import MOST_DIFFERENT, RULE, EntryDifference, SelfTest, entry_difference, self_test
from leapray.inference.weights import Combination, mean_weights, weighted_models
from leapray.models.directory import Model, load_model

INFO_FILE = "emulator.json"
SELFTEST_FILE = "selftest.npz"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Entries of every export; outputs have the type of the inputs."""


@dataclass(frozen=True)
class Format:
    """How a module becomes files and a file runs again: ``files`` names each, with the entries that it has."""

    files: Mapping[str, tuple[str, ...]]
    write: Callable[[CoupledEmulator, Tensor], bytes]
    """Takes the module and example inputs of the file's first entry."""
    read: Callable[[io.BytesIO], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Exported:
    """What an export left in its destination."""

    url: str
    files: tuple[str, ...]
    members: int
    rows: int
    """Rows of the self-test that each file passed."""


def export(
    models: Sequence[str],
    destination: str,
    form: str,
    *,
    layout: str = "kaggle556",
    weights: str | None = None,
    notice: Callable[[str], None] | None = None,
) -> Exported:
    """Export models as one emulator to the directory ``destination``, in the place of an earlier export.

    ``form`` is ``torchscript`` or ``torch-export`` and ``layout`` the order of inputs that the host passes. Several models are averaged
    with ``weights``, the URL of an ``ensemble.json``, whose own models are taken where none is given, or plainly; members without weight
    are left out. Raises UserError for a destination of other things, what is no model, an unknown format or layout, weights of other
    models, and a user's own network that cannot be exported. ``notice`` is told where float32 inputs give other outputs than float64.
    """
    if form not in FORMATS:
        raise UserError(f"--format is {form!r}; known ones are {', '.join(FORMATS)}")
    host = host_layout(layout)
    if not (models or weights):
        raise UserError("export needs at least one model directory, and got none")
    names, combination = storage.short_names(models), None
    if weights:
        models, combination, names = weighted_models(weights, models)
    _require_own(destination)
    counting = range(len(models)) if combination is None else np.flatnonzero(combination.weights.any(axis=1)).tolist()
    members = {names[index]: load_model(models[index]) for index in counting}
    targets = common(model.emulator.transform.variables for model in members.values()).targets
    combination = combination or Combination.of(mean_weights(len(models), targets))
    combination, emulators = combination.of_members(counting), [model.emulator for model in members.values()]
    emulator = CoupledEmulator(emulators, combination, host).eval().requires_grad_(False)
    test = self_test(emulator, [member.transform for member in emulators])
    found = entry_difference(emulator, emulators[0].transform)
    if found.largest > MOST_DIFFERENT and notice is not None:
        notice(
            f"float32 and float64 inputs give {found.column} up to {found.largest:.2g} training standard deviations apart; "
            "pass float64 if you can"
        )
    digests = _write(emulator, test, FORMATS[form], destination, _users_own(members.values()))
    storage.write_bytes(storage.join(destination, SELFTEST_FILE), test.content())
    storage.write_json(storage.join(destination, INFO_FILE), _info(form, host, emulator, members, combination, digests, test, found))
    return Exported(destination, tuple(digests), len(members), len(test.inputs))


def _require_own(destination: str) -> None:
    """Raises UserError for a directory that holds other things than an export, or what an interrupted one left."""
    storage.require_folder(destination)
    files, folders = storage.list_folder(destination) if storage.exists(destination) else ({}, [])
    names = {file.rpartition("/")[2] for file in files}
    if INFO_FILE in names:
        info = storage.read_json(storage.join(destination, INFO_FILE))
        if not (isinstance(info, dict) and {"layout", "selftest"} <= info.keys()):
            raise UserError(f"{destination}: holds an {INFO_FILE} that is no export's, expected an empty place for one")
        return
    if strange := sorted(names - _FILES) + folders:
        raise UserError(f"{destination}: holds {told(strange[0])} and no export, expected an empty place for one")


def _write(emulator: CoupledEmulator, test: SelfTest, form: Format, destination: str, users_own: str) -> dict[str, str]:
    """Write the files of a format, read them back and check them; their sha256 by name."""
    try:
        contents = {
            name: form.write(emulator, torch.from_numpy(test.inputs).to(DTYPES[entries[0]])) for name, entries in form.files.items()
        }
    except Exception as error:
        if not users_own:
            raise
        raise UserError(f"{users_own} cannot be exported ({type(error).__name__}: {_first_line(error)})") from error
    for name in _FILES:
        storage.remove(storage.join(destination, name))
    for name, content in contents.items():
        url = storage.join(destination, name)
        storage.write_bytes(url, content)
        run = form.read(io.BytesIO(storage.read_bytes(url)))
        for entry in form.files[name]:
            if difference := test.difference(run, DTYPES[entry]):
                storage.remove(url)
                raise (UserError if users_own else RuntimeError)(f"{url}: fails its self-test with {entry} inputs, {difference}")
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _torchscript(emulator: CoupledEmulator, example: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.script(emulator)), buffer)
    return buffer.getvalue()


def _exported_program(emulator: CoupledEmulator, example: Tensor) -> bytes:
    buffer = io.BytesIO()
    rows = torch.export.Dim("rows", min=0)
    with torch.no_grad(), warnings.catch_warnings():
        # recurrent layers keep a list of their own weights, which tracing replaces for a while
        warnings.filterwarnings("ignore", "The tensor attributes .*_flat_weights")
        program = torch.export.export(emulator, (example,), dynamic_shapes=({0: rows},))
    torch.export.save(program, buffer)
    return buffer.getvalue()


FORMATS = {
    "torchscript": Format({"emulator.pt": tuple(DTYPES)}, _torchscript, torch.jit.load),
    "torch-export": Format(
        {f"emulator.{entry}.pt2": (entry,) for entry in DTYPES}, _exported_program, lambda file: torch.export.load(file).module()
    ),
}
_FILES = {INFO_FILE, SELFTEST_FILE, *(name for form in FORMATS.values() for name in form.files)}


def _info(
    form: str,
    host: HostLayout,
    emulator: CoupledEmulator,
    members: Mapping[str, Model],
    combination: Combination,
    digests: Mapping[str, str],
    test: SelfTest,
    entries: EntryDifference,
) -> dict[str, Any]:
    variables, targets = emulator.variables, emulator.variables.targets
    return {
        "format": form,
        "files": [
            {"name": name, "entries": [{"inputs": entry, "outputs": entry} for entry in entries], "sha256": digests[name]}
            for name, entries in FORMATS[form].files.items()
        ],
        "layout": host.name,
        "inputs": _described(host.inputs),
        "outputs": _described(targets),
        "step_seconds": STEP_SECONDS,
        "inside": [*inside(variables), *host.inside(variables.raw)],
        "members": [
            {
                "name": name,
                "variables": model.emulator.transform.variables.name,
                "network": model.info.network.name,
                "weights_sha256": model.info.weights_sha256,
                "weights": {name: float(row[targets[name].start]) for name in targets.names},
            }
            for (name, model), row in zip(members.items(), combination.weights, strict=True)
        ],
        "fallback": [name for name, own in zip(targets.columns, np.any(combination.weights, axis=0), strict=True) if not own],
        "selftest": {"file": SELFTEST_FILE, "rows": len(test.inputs), "rule": RULE},
        "float32": asdict(entries),
        "versions": {"leapray": leapray.__version__, "torch": str(torch.__version__)},
    }


def _described(layout: Layout) -> dict[str, Any]:
    """Variables in order, each with its unit and its columns from ``start``, counted from 0, up to and without ``stop``."""
    variables = [
        {"name": v.name, "units": v.units, "long_name": v.long_name, "start": layout[v.name].start, "stop": layout[v.name].stop}
        for v in layout.variables
    ]
    return {"width": layout.width, "shape": f"(rows, {layout.width})", "variables": variables}


def _users_own(models: Iterable[Model]) -> str:
    """The users' own networks among the models, in words; empty where there are none."""
    names = dict.fromkeys(model.info.network.name for model in models if ":" in model.info.network.name)
    return f"network {', '.join(names)}" if names else ""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
