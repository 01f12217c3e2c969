"""Networks by name. A new architecture is one file and one line of ``NETWORKS``; a user's own is named ``package.module:Class``.

A network is an ``nn.Module`` class built as ``Network(options, features)``, which maps scaled inputs ``(B, 556 + 60 * features)``
in flat order to scaled targets ``(B, 368)``. One with a confidence head gives ``(B, 736)`` in training: the targets, then what it
expects each one's loss to be. A user's class names the pydantic model of its options as its ``Options``.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from leapray.climsim.schema import INPUTS, LEVELS, TARGETS
from leapray.errors import UserError
from leapray.models.linear import Linear, LinearOptions
from leapray.models.low_res_aqua import LowResAqua, LowResAquaOptions
from leapray.models.low_res_high_res import LowResHighRes, LowResHighResOptions
from leapray.models.mlp import MLP, MLPOptions
from leapray.recipe import Choice
from leapray.registry import Options, Registry

NETWORKS: Registry[nn.Module] = Registry(
    "network",
    {
        "linear": (LinearOptions, Linear),
        "low-res-aqua": (LowResAquaOptions, LowResAqua),
        "low-res-high-res": (LowResHighResOptions, LowResHighRes),
        "mlp": (MLPOptions, MLP),
    },
)


def build_network(name: str, options: Mapping[str, Any], features: int = 0) -> nn.Module:
    """A freshly initialised network; ``features`` engineered profiles follow the 556 inputs.

    Raises UserError for an unknown name, an option that the network does not know or take, and a user's own network that
    cannot be imported or does not give ``(B, 368)``.
    """
    choice = Choice(name=name, options=dict(options))
    if name in NETWORKS.entries or ":" not in name:
        return NETWORKS.build(choice, features)
    registry = _registry(name)
    registry.options(choice)
    try:
        network = registry.build(choice, features)
    except Exception as error:
        raise UserError(f"network {name}: cannot be built ({_told(error)})") from error
    _check_users_own(name, network, features)
    return network


def network_options(choice: Choice) -> BaseModel:
    """Checked options of a network, defaults filled in. Raises UserError for an unknown network or a wrong option."""
    return _registry(choice.name).options(choice)


def users_module(name: str) -> str | None:
    """The file or folder of a user's own network in the working directory, which other machines do not have; None for any other."""
    if ":" not in name:
        return None
    module = importlib.import_module(name.partition(":")[0].partition(".")[0])
    places = list(getattr(module, "__path__", [])) or [module.__file__]
    return places[0] if places[0] and os.path.dirname(places[0]) == os.getcwd() else None


def _registry(name: str) -> Registry[nn.Module]:
    return Registry(NETWORKS.key, {name: _users_own(name)}) if ":" in name else NETWORKS


def _users_own(name: str) -> tuple[type[Options], Callable[..., nn.Module]]:
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise UserError(f"network {name}: expected package.module:Class, a class in a module, both without .py")
    if os.getcwd() not in sys.path:
        # last, so that a user's file never hides an installed package
        sys.path.append(os.getcwd())
    try:
        network = getattr(importlib.import_module(module_name), class_name, None)
    except (Exception, SystemExit) as error:
        raise UserError(f"network {name}: cannot import {module_name} from {os.getcwd()} or the environment ({_told(error)})") from error
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise UserError(f"network {name}: {module_name} has no class {class_name} that is a torch.nn.Module")
    options = getattr(network, "Options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise UserError(f"network {name}: {class_name}.Options is not there or no pydantic model; expected one of its options")
    return options, network  # type: ignore[return-value]


def _check_users_own(name: str, network: nn.Module, features: int) -> None:
    """Try a network out, forward and backward, on a copy, since a pass may change what a network remembers."""
    network, width = deepcopy(network), INPUTS.width + LEVELS * features
    if not any(weights.requires_grad for weights in network.parameters()):
        raise UserError(f"network {name}: has no parameters to train")
    try:
        with torch.no_grad():
            result = network.eval()(torch.zeros(2, width))
        found = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        if found != (2, TARGETS.width):
            raise UserError(f"network {name}: gives {found} for inputs (2, {width}); expected (2, {TARGETS.width})")
        network.train()(torch.zeros(2, width)).sum().backward()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"network {name}: fails on inputs (2, {width}) ({_told(error)})") from error
    if unused := [key for key, weights in network.named_parameters() if weights.requires_grad and weights.grad is None]:
        # workers wait for every gradient
        raise UserError(f"network {name}: its output does not depend on {', '.join(unused[:3])}; remove them or set requires_grad to False")


def _told(error: BaseException) -> str:
    """An error of a user's code in one line, with the line of code that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}, {os.path.basename(place.filename)} line {place.lineno}"
