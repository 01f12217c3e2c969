"""Implementations by name: what turns a recipe's ``{name, options}`` into a checked options object and a built thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from leapray.errors import UserError
from leapray.faults import told
from leapray.recipe import Choice, validate

T = TypeVar("T")


class Options(BaseModel):
    """Base of every implementation's options: frozen, and an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Registry(Generic[T]):
    """Known implementations of one thing (a loss, a scaling), each with its options model and its builder.

    A builder takes the options first, then whatever the room passes to :meth:`build`.
    """

    def __init__(self, key: str, entries: Mapping[str, tuple[type[Options], Callable[..., T]]]) -> None:
        self.key = key
        self.entries = dict(entries)

    def options(self, choice: Choice) -> Options:
        """Checked options of a choice. Raises UserError for an unknown name or a wrong option."""
        if choice.name not in self.entries:
            raise UserError(f"{self.key}.name is {choice.name!r}; known ones are {', '.join(self.entries)}")
        model = self.entries[choice.name][0]
        if choice.options and not model.model_fields and model.model_config.get("extra") == "forbid":
            raise UserError(
                f"{self.key} {choice.name} takes no options, but {self.key}.options gives {', '.join(map(told, choice.options))}"
            )
        return validate(model, choice.options, f"{self.key}.options")

    def build(self, choice: Choice, *args: Any) -> T:
        """Build what a choice names."""
        options = self.options(choice)
        return self.entries[choice.name][1](options, *args)
