"""A model as a directory: ``model.safetensors`` with the weights and ``model.json`` with everything else; nothing is unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from leapray import provenance, storage
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.faults import placed, told
from leapray.models.emulator import Emulator
from leapray.models.registry import build_network, network_shapes, require_trusted
from leapray.recipe import Choice, validate

WEIGHTS_FILE = "model.safetensors"
INFO_FILE = "model.json"
_HEADER_BYTES = 16 << 20
"""The most that stands before the tensors in a file of weights."""


class ModelInfo(BaseModel):
    """What ``model.json`` holds: enough, with the weights, to predict, finetune and export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    """Of this file; raised when an older leapray could not read it or an older file means something else."""
    network: Choice
    transform: dict[str, Any]
    recipe: dict[str, Any] = Field(default_factory=dict)
    history: list[dict[str, Any]] = Field(default_factory=list)
    """One entry per validation, as the trainer reports it."""
    versions: dict[str, str]
    revision: str | None
    """Of leapray, as :func:`leapray.provenance.revision` tells it; None where it is not known."""
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
        transform=transform.to_dict(),
        recipe=dict(recipe or {}),
        history=[dict(entry) for entry in history],
        versions=provenance.versions(),
        revision=provenance.revision(),
        weights_sha256=hashlib.sha256(content).hexdigest(),
    )
    storage.write_bytes(storage.join(url, WEIGHTS_FILE), content)
    storage.write_json(storage.join(url, INFO_FILE), info.model_dump(mode="json"))
    return info


def load_model(url: str) -> Model:
    """Read a model directory.

    Nothing in it is trusted: the files decide neither how much memory is taken nor, but for a user's own network, what code is run
    (:func:`registry.require_trusted`). Raises UserError when a file is missing or damaged, when the model was made by an earlier leapray,
    and when its weights do not fit its network.
    """
    info = load_info(url)
    weights_url = storage.join(url, WEIGHTS_FILE)
    transform = Transform.from_dict(info.transform, f"{storage.join(url, INFO_FILE)}: transform")
    network = None
    if ":" in info.network.name:
        network = build_network(info.network.name, info.network.options, transform.channels)
        expected = network.state_dict()
    else:
        expected = network_shapes(info.network, transform.channels)
    content = storage.read_bytes(weights_url, sum(tensor.nbytes for tensor in expected.values()) + _HEADER_BYTES)
    if hashlib.sha256(content).hexdigest() != info.weights_sha256:
        raise UserError(f"{weights_url}: does not belong to the {INFO_FILE} beside it (sha256 differs): a damaged or half-copied model")
    try:
        weights = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{weights_url}: not a safetensors file that torch can hold ({told(error, 200)})") from error
    if difference := _difference(expected, weights):
        raise UserError(f"{weights_url}: weights do not fit network {info.network.name!r}: {difference}")
    network = network or build_network(info.network.name, info.network.options, transform.channels)
    network.load_state_dict(weights)
    return Model(Emulator(transform, network).eval(), info)


def load_info(url: str) -> ModelInfo:
    """Read ``model.json`` alone. Raises UserError when it is missing, damaged or of an earlier format."""
    info_url = storage.join(url, INFO_FILE)
    if not storage.exists(info_url):
        inner = storage.join(url, "model")
        hint = f"; {inner} is one" if storage.exists(storage.join(inner, INFO_FILE)) else ""
        raise UserError(f"{placed(url)}: not a model directory ({INFO_FILE} is missing){hint}")
    values = storage.read_json(info_url)
    if isinstance(values, dict) and "network" in values and values.get("format") != ModelInfo.model_fields["format"].default:
        raise UserError(f"{info_url}: of another format, {told(values.get('format'))}, than this leapray's models; train the model again")
    info = validate(ModelInfo, values, info_url)
    require_trusted(info.network.name, url)
    return info


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What two sets of tensors disagree on, as one clause; empty when names, shapes and types are the same."""

    def first(names: Sequence[str]) -> str:
        return ", ".join(told(name, 200) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def describe(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {told(tuple(tensor.shape))}"

    clauses = []
    if missing := [name for name in expected if name not in found]:
        clauses.append(f"missing {first(missing)}")
    if unknown := sorted(name for name in found if name not in expected):
        clauses.append(f"unknown {first(unknown)}")
    changed = [name for name in expected if name in found and describe(expected[name]) != describe(found[name])]
    if changed:
        clauses.append(first([f"{name} is {describe(found[name])}, expected {describe(expected[name])}" for name in changed]))
    return "; ".join(clauses)
