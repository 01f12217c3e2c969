"""What every section of a recipe is made of: strict frozen models, months, seeds, and choices among implementations."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from leapray.climsim.calendar import Month
from leapray.errors import UserError

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Names that become folders."""


class Section(BaseModel):
    """A part of a recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


def _month(value: Any) -> Month:
    if isinstance(value, Month):
        return value
    try:
        return Month.parse(value)
    except UserError as error:
        raise ValueError(str(error)) from error


Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
MonthField = Annotated[Month, BeforeValidator(_month), PlainSerializer(str)]


class Months(Section):
    """Months from ``start`` up to, not including, ``stop``."""

    start: MonthField
    stop: MonthField

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"stop {self.stop} must come after start {self.start} (stop is exclusive)")
        return self

    def overlaps(self, other: Months) -> bool:
        return self.start < other.stop and other.start < self.stop

    def __str__(self) -> str:
        return f"{self.start} up to {self.stop}"


class Choice(Section):
    """One implementation by name, with its options; the registry of its room checks both."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
