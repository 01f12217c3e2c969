"""A model as a directory: ``model.safetensors`` with the weights and ``model.json`` with everything else; nothing is unpickled."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

import leapray
from leapray import storage
from leapray.climsim.schema import schema_hash
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.models.emulator import Emulator
from leapray.models.registry import build_network
from leapray.recipe import Choice, validate

WEIGHTS_FILE = "model.safetensors"
INFO_FILE = "model.json"


class ModelInfo(BaseModel):
    """What ``model.json`` holds: enough, with the weights, to predict, finetune and export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Choice
    schema_hash: str
    transform: dict[str, Any]
    recipe: dict[str, Any] = Field(default_factory=dict)
    history: list[dict[str, Any]] = Field(default_factory=list)
    """One entry per validation, as the trainer reports it."""
    versions: dict[str, str]
    revision: str | None
    """Git revision of leapray's checkout, with ``-dirty`` when it had changes; None for an installed package."""
    weights_sha256: str


@dataclass(frozen=True)
class Model:
    """A model loaded from its directory, in evaluation mode on the CPU."""

    emulator: Emulator
    info: ModelInfo


def save_model(
    url: str,
    weights: Mapping[str, Tensor],
    network: Choice,
    transform: Transform,
    *,
    recipe: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> ModelInfo:
    """Write a model directory: the network's ``state_dict`` and what it takes to rebuild it. The json, written last, seals it."""
    content = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    info = ModelInfo(
        network=network,
        schema_hash=schema_hash(),
        transform=transform.to_dict(),
        recipe=dict(recipe or {}),
        history=[dict(entry) for entry in history],
        versions={"leapray": leapray.__version__, "torch": str(torch.__version__), "python": platform.python_version()},
        revision=_revision(),
        weights_sha256=hashlib.sha256(content).hexdigest(),
    )
    storage.write_bytes(storage.join(url, WEIGHTS_FILE), content)
    storage.write_json(storage.join(url, INFO_FILE), info.model_dump(mode="json"))
    return info


def load_model(url: str) -> Model:
    """Read a model directory.

    Raises UserError when a file is missing or damaged, when the model was made for another schema, and when its weights do not
    fit its network.
    """
    info = load_info(url)
    weights_url = storage.join(url, WEIGHTS_FILE)
    content = storage.read_bytes(weights_url)
    if hashlib.sha256(content).hexdigest() != info.weights_sha256:
        raise UserError(f"{weights_url}: does not belong to the {INFO_FILE} beside it (sha256 differs): a damaged or half-copied model")
    try:
        weights = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(f"{weights_url}: not a safetensors file ({error})") from error
    transform = Transform.from_dict(info.transform, f"{storage.join(url, INFO_FILE)}: transform")
    network = build_network(info.network.name, info.network.options, transform.features)
    if difference := _difference(network.state_dict(), weights):
        raise UserError(f"{weights_url}: weights do not fit network {info.network.name!r}: {difference}")
    network.load_state_dict(weights)
    return Model(Emulator(transform, network).eval(), info)


def load_info(url: str) -> ModelInfo:
    """Read ``model.json`` alone. Raises UserError when it is missing, damaged or made for another schema."""
    info_url = storage.join(url, INFO_FILE)
    if not storage.exists(info_url):
        raise UserError(f"{url}: not a model directory ({INFO_FILE} is missing)")
    info = validate(ModelInfo, storage.read_json(info_url), info_url)
    if info.schema_hash != schema_hash():
        raise UserError(f"{info_url}: made for columns of schema {info.schema_hash}; this leapray's schema is {schema_hash()}")
    return info


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What two sets of tensors disagree on, as one clause; empty when names, shapes and types are the same."""

    def first(names: Sequence[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def describe(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

    clauses = []
    if missing := [name for name in expected if name not in found]:
        clauses.append(f"missing {first(missing)}")
    if unknown := sorted(name for name in found if name not in expected):
        clauses.append(f"unknown {first(unknown)}")
    changed = [name for name in expected if name in found and describe(expected[name]) != describe(found[name])]
    if changed:
        clauses.append(first([f"{name} is {describe(found[name])}, expected {describe(expected[name])}" for name in changed]))
    return "; ".join(clauses)


def _revision() -> str | None:
    checkout = Path(leapray.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
