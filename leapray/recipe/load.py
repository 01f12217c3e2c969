"""Recipes from YAML: loaded strictly, overridden, and every mistake told in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from leapray import storage
from leapray.errors import UserError

ModelT = TypeVar("ModelT", bound=BaseModel)


_MERGE = "tag:yaml.org,2002:merge"


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice; what ``<<`` takes over may be given anew."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value if key.tag != _MERGE]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)


def read_recipe(url: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a recipe file with ``section.key=value`` overrides. Raises UserError when it is not a mapping in YAML."""
    try:
        content = yaml.load(storage.read_bytes(url), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{url}: not valid YAML: {' '.join(str(error).split())}") from error
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
        raise UserError(f"{name}: {'; '.join(_sentence(model, item) for item in error.errors())}") from error


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override!r} is not of the form section.key=value")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not valid YAML") from error
    assign(content, path, value, f"--set {override!r}")


def assign(content: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Put a value at a dotted key; sections that are missing or null are made. Raises UserError that begins with ``where``."""
    *sections, last = path.split(".")
    for key in sections:
        if content.get(key) is None:
            content[key] = {}
        content = content[key]
        if not isinstance(content, dict):
            raise UserError(f"{where}: {key!r} is not a section")
    content[last] = value


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with changes laid over them, section by section; a choice of another name is replaced, and so is all else."""
    result = dict(content)
    for key, change in changes.items():
        ours = result.get(key)
        if isinstance(ours, Mapping) and isinstance(change, Mapping) and not _names_another(change, ours):
            result[key] = merged(ours, change)
        else:
            result[key] = change
    return result


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
    location = [str(part) for part in error["loc"]]
    where = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys are {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if error["type"] == "missing" and location[-1].isdigit():
        return f"{'.'.join(location[:-1])} lacks a value, expected at least {int(location[-1]) + 1}"
    if error["type"] == "missing":
        return f"key {where!r} is missing"
    message = _EXPECTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    if error["type"] == "value_error" or not where:
        return f"{where}: {message}" if where else message
    return f"{where} is {error['input']!r}: {message[0].lower()}{message[1:]}"


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
