"""Model time: months, steps of 1 200 s since 0001-02-01 00000 in a calendar without leap years, and file names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from leapray.climsim.schema import STEP_SECONDS
from leapray.errors import UserError

STEPS_PER_DAY = 86400 // STEP_SECONDS
_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DAYS_BEFORE = tuple(sum(_MONTH_DAYS[:month]) for month in range(12))
DAYS_PER_YEAR = sum(_MONTH_DAYS)
_FILE_NAME = re.compile(r"E3SM-MMF\.(mli|mlo)\.(\d{4})-(\d{2})-(\d{2})-(\d{5})\.nc$")


@dataclass(frozen=True, order=True)
class Month:
    """A month of model time, written ``0001-02``."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Self:
        match = re.fullmatch(r"(\d{4})-(\d{2})", str(text))
        if match is None or not 1 <= int(match[2]) <= 12 or int(match[1]) < 1:
            raise UserError(f"month {text!r} is not of the form YYYY-MM, such as 0001-02")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}"

    @property
    def index(self) -> int:
        """Months since year 0."""
        return self.year * 12 + self.month - 1

    def __add__(self, months: int) -> Month:
        index = self.index + months
        return Month(index // 12, index % 12 + 1)

    @property
    def first_step(self) -> int:
        """Absolute step of the month's first day at 00000; negative before 0001-02."""
        days = self.year * DAYS_PER_YEAR + _DAYS_BEFORE[self.month - 1]
        return (days - _EPOCH_DAYS) * STEPS_PER_DAY

    @property
    def steps(self) -> int:
        """Number of steps in the month."""
        return _MONTH_DAYS[self.month - 1] * STEPS_PER_DAY


_EPOCH_DAYS = DAYS_PER_YEAR + _DAYS_BEFORE[1]
FIRST_MONTH = Month(1, 2)


def month_range(start: Month, stop: Month) -> list[Month]:
    """Months from ``start`` up to, not including, ``stop``."""
    count = (stop.year - start.year) * 12 + stop.month - start.month
    return [start + index for index in range(max(count, 0))]


def check_stride(stride: int, phase: int) -> None:
    """Raises UserError unless ``step % stride == phase`` holds for some of the steps."""
    if stride < 1 or not 0 <= phase < stride:
        raise UserError(f"stride {stride} with phase {phase}: expected a stride of at least 1 and a phase from 0 to stride - 1")


@dataclass(frozen=True)
class Moment:
    """The date and second of day of one model step."""

    year: int
    month: int
    day: int
    second: int

    @classmethod
    def of_step(cls, step: int) -> Self:
        days, step_of_day = divmod(step, STEPS_PER_DAY)
        year, day_of_year = divmod(days + _EPOCH_DAYS, DAYS_PER_YEAR)
        month = max(index for index in range(12) if _DAYS_BEFORE[index] <= day_of_year)
        return cls(year, month + 1, day_of_year - _DAYS_BEFORE[month] + 1, step_of_day * STEP_SECONDS)

    @property
    def ymd(self) -> int:
        """The ``ymd`` scalar of a file: YYYYMMDD without leading zeros."""
        return self.year * 10000 + self.month * 100 + self.day

    @property
    def date(self) -> str:
        """YYYY-MM-DD."""
        return f"{self.year:04d}-{self.month:02d}-{self.day:02d}"

    @property
    def day_of_year(self) -> float:
        """Days since 1 January 00000, with the fraction of the day."""
        return _DAYS_BEFORE[self.month - 1] + self.day - 1 + self.second / 86400


def month_of_step(step: int) -> Month:
    """The month that an absolute step falls in."""
    moment = Moment.of_step(step)
    return Month(moment.year, moment.month)


def file_name(stream: str, step: int) -> str:
    """``E3SM-MMF.mli.0001-02-01-00000.nc`` for stream ``mli`` or ``mlo`` and an absolute step."""
    at = Moment.of_step(step)
    return f"E3SM-MMF.{stream}.{at.date}-{at.second:05d}.nc"


def is_file_name(path: str) -> bool:
    """Whether a name has the form of a ClimSim file's, be its date and second one of the calendar or not."""
    return _FILE_NAME.search(path) is not None


def parse_file_name(path: str) -> tuple[str, int] | None:
    """Stream and absolute step of a ClimSim file, or None if the name is not one; official code takes time from the name too."""
    match = _FILE_NAME.search(path)
    if match is None:
        return None
    stream, (year, month, day, second) = match[1], (int(part) for part in match.groups()[1:])
    if not (1 <= month <= 12 and 1 <= day <= _MONTH_DAYS[month - 1] and second < 86400 and second % STEP_SECONDS == 0):
        return None
    days = year * DAYS_PER_YEAR + _DAYS_BEFORE[month - 1] + day - 1 - _EPOCH_DAYS
    return stream, days * STEPS_PER_DAY + second // STEP_SECONDS
