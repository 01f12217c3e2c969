"""Networks by name. A new architecture is one file and one line of ``NETWORKS``; a user's own is named ``package.module:Class``.

A network is an ``nn.Module`` class built as ``Network(options, channels)``, which maps scaled inputs ``(B, i)``
in flat order to scaled targets ``(B, t)``. One with a confidence head gives ``(B, 2 t)`` in training: the targets, then what it
expects each one's loss to be. A user's class names the pydantic model of its options as its ``Options``.

Naming a user's class runs its module, so it is found where only the user puts code: in the working directory and among what is
installed. A model that names one is somebody else's word for it: see :func:`require_trusted`.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from leapray import storage
from leapray.climsim.schema import Channels
from leapray.errors import UserError
from leapray.faults import told
from leapray.models.linear import Climatology, ClimatologyOptions, Linear, LinearOptions, RidgeOptions
from leapray.models.low_res_aqua import LowResAqua, LowResAquaOptions
from leapray.models.low_res_high_res import LowResHighRes, LowResHighResOptions
from leapray.models.mlp import MLP, MLPOptions
from leapray.recipe import Choice
from leapray.registry import Options, Registry

_MOST_VALUES, _MOST_TENSORS = 10**10, 2_000
"""The most weights that a network may have, 40 GB of them, and tensors that they may be in."""

CLIMATOLOGY, RIDGE = "climatology", "ridge"
SOLVED = (CLIMATOLOGY, RIDGE)
"""Networks that are solved for, not trained by steps."""

NETWORKS: Registry[nn.Module] = Registry(
    "network",
    {
        CLIMATOLOGY: (ClimatologyOptions, Climatology),
        "linear": (LinearOptions, Linear),
        "low-res-aqua": (LowResAquaOptions, LowResAqua),
        "low-res-high-res": (LowResHighResOptions, LowResHighRes),
        "mlp": (MLPOptions, MLP),
        RIDGE: (RidgeOptions, Linear),
    },
)


def build_network(name: str, options: Mapping[str, Any], channels: Channels) -> nn.Module:
    """A freshly initialised network for these channels.

    Raises UserError for an unknown name, an option that the network does not know or take, and a user's own network that
    cannot be imported or does not give its targets.
    """
    choice = Choice(name=name, options=dict(options))
    if name in NETWORKS.entries or ":" not in name:
        network_shapes(choice, channels)
        return NETWORKS.build(choice, channels)
    registry = _registry(name)
    registry.options(choice)
    try:
        network = registry.build(choice, channels)
    except Exception as error:
        raise UserError(f"network {name}: cannot be built ({_told(error)})") from error
    _check_users_own(name, network, channels)
    return network


def network_shapes(choice: Choice, channels: Channels, most: int = _MOST_VALUES) -> dict[str, Tensor]:
    """The state of one of our networks with names, shapes and types, but without values, so that it takes no memory.

    Raises UserError for an unknown name, a wrong option, and options that ask for more than ``most`` weights.
    """
    options = NETWORKS.options(choice)
    asked = f"network {choice.name} with options {told(options.model_dump(mode='json'), 300)}"
    values, tensors, thread = 0, 0, threading.get_ident()

    def count(module: nn.Module, name: str, weights: nn.Parameter | None) -> None:
        nonlocal values, tensors
        if weights is not None and threading.get_ident() == thread:
            values, tensors = values + weights.numel(), tensors + 1
            if values > most or tensors > _MOST_TENSORS:
                found = f"{most} weights" if values > most else f"{_MOST_TENSORS} tensors"
                raise UserError(f"{asked} has more than {found}, the most that it may have")

    counting = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            return dict(NETWORKS.build(choice, channels).state_dict())
    except (RuntimeError, TypeError, OverflowError) as error:
        # sizes that no tensor can have, with nothing allocated
        raise UserError(f"{asked} is larger than any tensor can be") from error
    finally:
        counting.remove()


def require_trusted(name: str, model: str) -> None:
    """Raises UserError where the directory ``model`` names a network whose code is not the user's to begin with.

    That is code that lies in the model's directory, or below it, however it is reached, and any module of Python itself, some of which
    act when they are imported. Nothing is imported to find out. Other modules are run as they are for a recipe that names them.
    """
    if ":" not in name:
        return
    parts = name.partition(":")[0].split(".")
    if parts[0] in sys.stdlib_module_names:
        raise UserError(f"{model}: names network {told(name)} of Python's own module {told(parts[0])}, expected one of the user's")
    if not storage.is_local(model):
        return
    places: Iterable[str] = [os.getcwd(), *sys.path]
    for part in parts:
        # by its own name alone: a folder without __init__.py would otherwise be looked for in a package that is not imported yet
        found = PathFinder.find_spec(part, list(places))
        if found is None:
            return
        places = list(found.submodule_search_locations or [])
        for place in [found.origin, *places]:
            if place and Path(place).resolve().is_relative_to(Path(storage.absolute(model)).resolve()):
                raise UserError(
                    f"{model}: names network {told(name)}, whose code {told(place, 1000)} came with it and is not run; "
                    "look at it, and copy it into your working directory"
                )


def network_options(choice: Choice) -> BaseModel:
    """Checked options of a network, defaults filled in. Raises UserError for an unknown network or a wrong option."""
    return _registry(choice.name).options(choice)


def users_modules(*names: str) -> list[str]:
    """The files and folders of users' own networks in the working directory, which other machines do not have, by networks' names."""
    own = [name.partition(":")[0].partition(".")[0] for name in names if ":" in name]
    places = [str(Path.cwd() / module) for module in dict.fromkeys(own)]
    return [found for place in places for found in (place, f"{place}.py") if Path(found).exists()]


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


def _check_users_own(name: str, network: nn.Module, channels: Channels) -> None:
    """Try a network out, forward and backward, on a copy, since a pass may change what a network remembers."""
    network, width, targets = deepcopy(network), channels.inputs.width, channels.targets.width
    if not any(weights.requires_grad for weights in network.parameters()):
        raise UserError(f"network {name}: has no parameters to train")
    try:
        with torch.no_grad():
            result = network.eval()(torch.zeros(2, width))
        found = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        if found != (2, targets):
            raise UserError(f"network {name}: gives {found} for inputs (2, {width}); expected (2, {targets})")
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
