"""What a user sees in the terminal: one progress bar or table of trainings at a time, short lines, tables."""

from leapray.console.numbers import counted, digits, duration, scaled
from leapray.console.progress import Record, Update, bar, training_bar, training_note
from leapray.console.terminal import console, errors, say, table
from leapray.console.trainings import TrainingsTable, trainings_table

__all__ = [
    "Record",
    "TrainingsTable",
    "Update",
    "bar",
    "console",
    "counted",
    "digits",
    "duration",
    "errors",
    "say",
    "scaled",
    "table",
    "training_bar",
    "training_note",
    "trainings_table",
]
