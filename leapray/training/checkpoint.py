"""Checkpoints: nested state of tensors and plain values as a directory of safetensors and json, bit for bit, nothing pickled.

``state.json`` is written last, so a directory that has it is complete; one without it is the rest of an interrupted write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from leapray import storage
from leapray.errors import UserError
from leapray.faults import told

TENSORS, STATE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"step-\d{9,}(-\d{5,})?")
"""What :func:`step_url` names; what else lies there, such as somebody's copy of one, is passed over."""


def save(url: str, state: Mapping[Any, Any]) -> None:
    """Write nested dicts (keys: str, int, float, bool, None), lists, tuples, plain values and tensors of any device.

    Tensors that share memory are written each for itself. Raises TypeError for anything else.
    """
    tensors: dict[str, torch.Tensor] = {}
    content = _encode(state, "", tensors)
    storage.remove(storage.join(url, STATE))
    storage.write_bytes(storage.join(url, TENSORS), safetensors.torch.save(tensors))
    storage.write_json(storage.join(url, STATE), content)


def load(url: str) -> Any:
    """Read what :func:`save` wrote, tensors on the CPU. Raises UserError when it is missing, incomplete or damaged."""
    content = storage.read_json(storage.join(url, STATE))
    try:
        tensors = safetensors.torch.load(storage.read_bytes(storage.join(url, TENSORS)))
        state = _decode(content, tensors)
        if not isinstance(state, dict):
            raise TypeError(f"its state is a {type(state).__name__}")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{url}: damaged checkpoint ({told(error, 200)}); remove it to continue from the one before") from error
    return state


def step_url(folder: str, steps: int, validations: int = 0) -> str:
    """Where the checkpoint after so many steps and validations lies, in the order of names."""
    return storage.join(folder, f"step-{steps:09d}" + (f"-{validations:05d}" if validations else ""))


def steps_of(url: str) -> int:
    """The steps after which a checkpoint was written."""
    return int(url.rsplit("/", 1)[-1].split("-")[1])


def complete(folder: str, seal: str = STATE) -> list[str]:
    """Complete checkpoints of a folder, oldest first, or what else :func:`step_url` named there whose last file is ``seal``.

    None if the folder is not there.
    """
    found = storage.list_files(folder, f"/{seal}") if storage.exists(folder) else []
    return [url for url in (file.removesuffix(f"/{seal}") for file in found) if _NAME.fullmatch(url.rsplit("/", 1)[-1])]


def prune(folder: str, keep: int) -> None:
    """Remove all but the newest ``keep`` complete checkpoints."""
    for url in complete(folder)[:-keep]:
        # without its state a checkpoint no longer counts, wherever the removal is interrupted
        storage.remove(storage.join(url, STATE))
        storage.remove(url)


def _encode(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Value as json holds it; what json cannot say stands under a key that begins with ``$``."""
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}:{path}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": name}
    if isinstance(value, Mapping):
        items = [(key, _encode(item, f"{path}.{key}" if path else str(key), tensors)) for key, item in value.items()]
        if all(type(key) is str and not key.startswith("$") for key in value):
            return dict(items)
        return {"$items": [[_encode(key, path, tensors), item] for key, item in items]}
    if isinstance(value, list | tuple):
        items_list = [_encode(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
        return items_list if isinstance(value, list) else {"$tuple": items_list}
    if type(value) is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{path or 'state'}: a checkpoint cannot hold {type(value).__name__}")


def _decode(content: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(content, list):
        return [_decode(item, tensors) for item in content]
    if not isinstance(content, dict):
        return content
    match content:
        case {"$tensor": name}:
            return tensors[name]
        case {"$float": text}:
            return float(text)
        case {"$tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
        case {"$items": items}:
            return {_decode(key, tensors): _decode(item, tensors) for key, item in items}
    return {key: _decode(item, tensors) for key, item in content.items()}
