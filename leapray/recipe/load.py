"""Recipes from YAML: loaded strictly, overridden, and every mistake told in one sentence."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from leapray import storage
from leapray.errors import UserError
from leapray.faults import told
from leapray.recipe.sections import Choice

ModelT = TypeVar("ModelT", bound=BaseModel)


_MERGE = "tag:yaml.org,2002:merge"
_BYTES, _VALUES, _DEPTH = 4 << 20, 100_000, 40
"""The most that a recipe may have: as a file, and of keys and values with its aliases written out, and of sections in sections."""
_INTEGER_BITS = 64
_SENTENCES, _CHARACTERS = 12, 100
"""Mistakes that are told at once, and how much of a value that is wrong."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice; what ``<<`` takes over may be given anew.

    It also refuses what a few lines of aliases may stand for: a value that holds itself, and more values, or deeper ones, than any
    recipe has. Whole numbers have 64 bits, as those who take them expect.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _measure(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # before the keys that << takes over are laid among them
        own = [key for key, _ in node.value if key.tag != _MERGE]
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        for key, count in Counter(self.construct_object(key, deep=deep) for key in own).items():
            if count > 1:
                raise yaml.MarkedYAMLError(problem=f"key {_short(key)} is given twice", problem_mark=node.start_mark)
        return mapping

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        if value.bit_length() >= _INTEGER_BITS:
            raise yaml.MarkedYAMLError(problem="a whole number is too large", problem_mark=node.start_mark)
        return value


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Values that a node stands for and how deep they lie, its aliases written out; each node is looked at once."""
    if id(node) in known:
        if (found := known[id(node)]) is None:
            raise yaml.MarkedYAMLError(problem="a value holds itself", problem_mark=node.start_mark)
        return found
    known[id(node)] = None
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    measured = [_measure(part, known) for part in inner]
    values, depth = 1 + sum(count for count, _ in measured), 1 + max((below for _, below in measured), default=0)
    if values > _VALUES or depth > _DEPTH:
        found_there = f"more than {_VALUES} values" if values > _VALUES else f"more than {_DEPTH} sections in one another"
        raise yaml.MarkedYAMLError(problem=f"there are {found_there}", problem_mark=node.start_mark)
    known[id(node)] = (values, depth)
    return values, depth


def _parsed(content: bytes | str) -> Any:
    """What YAML says. Raises ValueError with the reason where it is none of a recipe's."""
    try:
        return yaml.load(content, Loader=_StrictLoader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, yaml.reader.ReaderError) and isinstance(content, bytes) and error.encoding == "utf-8":
            line = content[: error.position].count(b"\n") + 1
            raise ValueError(f"line {line} is not in UTF-8; save the file as UTF-8") from error
        raise ValueError(told(" ".join(str(error).split()), 300)) from error


def _short(value: Any) -> str:
    return told(repr(value), _CHARACTERS)


def read_recipe(url: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a recipe file with ``section.key=value`` overrides. Raises UserError when it is not a mapping in YAML."""
    try:
        content = _parsed(storage.read_bytes(url, _BYTES))
    except ValueError as error:
        raise UserError(f"{url}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{url}: a recipe is a mapping of sections, found {type(content).__name__}")
    for override in overrides:
        _apply(content, override)
    return content


def validate(model: type[ModelT], content: Mapping[str, Any], name: str) -> ModelT:
    """Build a pydantic model; its errors become one UserError that names each key and what was expected."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        mistakes = error.errors()
        more = [f"and {len(mistakes) - _SENTENCES} more mistakes"] if len(mistakes) > _SENTENCES else []
        raise UserError(f"{name}: {'; '.join([_sentence(model, item) for item in mistakes[:_SENTENCES]] + more)}") from error


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override!r} is not of the form section.key=value")
    try:
        value = _parsed(text)
    except ValueError as error:
        raise UserError(f"--set {_short(override)}: the value is not valid YAML") from error
    assign(content, path, value, f"--set {override!r}")


def assign(content: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Put a value at a dotted key; sections that are missing or null are made. Raises UserError that begins with ``where``."""
    keys = path.split(".")
    for key, inner in pairwise(keys):
        if content.get(key) is None:
            content[key] = {}
        content[key] = _spelt_out(content[key], {inner})
        content = content[key]
        if not isinstance(content, dict):
            raise UserError(f"{where}: {key!r} is not a section")
    content[keys[-1]] = value


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with changes laid over them, section by section; a choice of another name is replaced, and so is all else."""
    result = dict(content)
    for key, change in changes.items():
        ours = _spelt_out(result.get(key), change if isinstance(change, Mapping) else ())
        if isinstance(ours, Mapping) and isinstance(change, Mapping) and not _names_another(change, ours):
            result[key] = merged(ours, change)
        else:
            result[key] = change
    return result


def _spelt_out(value: Any, keys: Collection[str]) -> Any:
    """A choice that is written as its name alone, where keys of a choice are changed in it; else the value."""
    return {"name": value} if isinstance(value, str) and keys and set(keys) <= set(Choice.model_fields) else value


def _names_another(change: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    return "name" in ours and change.get("name", ours["name"]) != ours["name"]


_EXPECTED = {
    "tuple_type": "expected a list",
    "model_type": "expected a mapping of keys",
    "model_attributes_type": "expected a mapping of keys",
    "dict_type": "expected a mapping of keys",
    "too_short": "expected at least one of them",
}


def _sentence(model: type[BaseModel], error: Any) -> str:
    location = [told(part) for part in error["loc"]]
    where = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys are {', '.join(known)}"
        return f"unknown key '{where}'; {hint}"
    if error["type"] == "missing" and location[-1].isdigit():
        return f"{'.'.join(location[:-1])} lacks a value, expected at least {int(location[-1]) + 1}"
    if error["type"] == "missing":
        return f"key '{where}' is missing"
    message = _EXPECTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    if error["type"] == "value_error" or not where:
        return f"{where}: {message}" if where else message
    return f"{where} is {_short(error['input'])}: {message[0].lower()}{message[1:]}"


def _keys_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    """Known keys of the section at a location, found by walking the models' annotations."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None or part not in current.model_fields:
            continue
        current = _section_of(current.model_fields[part].annotation)
    return sorted(current.model_fields) if current else []


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in getattr(annotation, "__args__", ()) if (found := _section_of(arg))), None)
