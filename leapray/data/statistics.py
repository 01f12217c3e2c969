"""The transform of prepared data: fitted by a pass over the training rows of one source, or from statistics made elsewhere.

Those are a ``transform.json`` as it stands, or a csv of every column's mean, std, min and max.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from leapray import storage
from leapray.climsim.schema import VariableSet
from leapray.data import flat
from leapray.data.clean import Tally, clean, usable
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.data.parts import WORK, Part, Progress, once
from leapray.data.shards import TRANSFORM, load_transform
from leapray.data.tasks import run_tasks
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.recipe import Choice, Data

_NAME = "column"
_FIGURES = ("mean", "std", "min", "max")


def transform_from_statistics(url: str, variables: VariableSet, scaling: Choice, features: Sequence[str]) -> Transform:
    """The transform that a recipe's ``data.statistics`` names, for its scaling and features.

    A csv holds one row for each column of the rows, in any order, with ``column, mean, std, min, max`` among its fields. What it was
    fitted on is then its name and content's hash. Raises UserError for a ``transform.json``, or a model's ``model.json``, of another
    scaling or other features, for a csv where the recipe needs more than the moments of raw columns, and for a figure that is missing,
    blank or cannot be.
    """
    fitting = Fitting(variables, scaling, features)
    if url.endswith(".json"):
        values = storage.read_json(url)
        # a model has its transform with it
        transform = Transform.from_dict(values["transform"] if isinstance(values, dict) and "transform" in values else values, url)
        variables.require(transform.variables, url)
        _check_same(url, fitting, transform)
        return transform
    if not url.endswith(".csv"):
        raise UserError(f"data.statistics: {url} is neither a .json nor a .csv file")
    if not fitting.raw:
        what = f"scaling {scaling.name!r}" if fitting.log_variables else f"variables {variables.name}"
        why = f"features {', '.join(fitting.features)}" if fitting.features else what
        raise UserError(f"{url}: a csv has the statistics of raw columns only, and {why} needs more; give a transform.json")
    content = storage.read_bytes(url)
    fitted_on = {"statistics": url.rsplit("/", 1)[-1], "sha256": hashlib.sha256(content).hexdigest()}
    return fitting.fit(_read_moments(url, variables, content), fitted_on)


def _check_same(url: str, fitting: Fitting, transform: Transform) -> None:
    for key, asked, found in (
        ("scaling.name", fitting.name, transform.scaling),
        ("scaling.options", fitting.options, transform.options),
        ("features", list(fitting.features), transform.feature_names),
    ):
        if asked != found:
            raise UserError(f"{url}: was made with data.{key} {found}, but the recipe has {asked}")


def _read_moments(url: str, variables: VariableSet, content: bytes) -> Moments:
    """Figures of every column as moments of one row, whose sum of squares is the variance."""
    rows = _rows(url, content)
    unused = set(np.array(variables.targets.columns)[variables.targets.zero].tolist())
    figures = np.array([_figures(url, name, rows, name in unused) for name in variables.columns]).T
    mean, std, minimum, maximum = np.ascontiguousarray(figures)
    return Moments(1, mean, std**2, minimum, maximum)


def _rows(url: str, content: bytes) -> dict[str, dict[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
        missing = [key for key in (_NAME, *_FIGURES) if key not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{url}: field {', '.join(missing)} missing, expected {', '.join((_NAME, *_FIGURES))}")
        rows: dict[str, dict[str, str]] = {}
        for row in reader:
            if row[_NAME] in rows:
                raise UserError(f"{url}: column {row[_NAME]} stands more than once, expected every column once")
            rows[row[_NAME]] = row
        return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{url}: not a csv ({error})") from error


def _figures(url: str, name: str, rows: dict[str, dict[str, str]], unused: bool) -> list[float]:
    """Figures of a column; those of one that is ``unused``, 0 in every prediction, may be blank."""
    if name not in rows:
        raise UserError(f"{url}: column {name} is missing, expected a row for every column")
    texts = [(rows[name][key] or "").strip() for key in _FIGURES]
    if unused and not all(texts):
        return [0.0] * len(_FIGURES)
    values = [_number(url, name, key, text) for key, text in zip(_FIGURES, texts, strict=True)]
    _, std, minimum, maximum = values
    if std < 0 or minimum > maximum:
        raise UserError(f"{url}: column {name} has std {std:g}, min {minimum:g} and max {maximum:g}, expected std >= 0 and min <= max")
    return values


def _number(url: str, name: str, key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{url}: {key} of column {name} is {text!r}, expected a finite number")
    return value


def make_transform(data: Data, fitting: Fitting, parts: Sequence[Part], prepared: str, notify: Progress) -> Transform:
    """The transform of a prepared directory: the one that lies there, the one that the recipe carries in, or one fitted now.

    Raises UserError for statistics that cannot serve, unreadable data, and months without usable rows.
    """
    url = storage.join(prepared, TRANSFORM)
    if not storage.exists(url):
        if data.statistics is not None:
            transform = transform_from_statistics(data.statistics, data.variable_set, data.scaling, data.features)
        else:
            fit = next(part for part in parts if part.source == data.fit_source and part.split == "train")
            transform = _fit(data, fitting, fit, storage.join(prepared, WORK), notify)
        storage.write_json(url, transform.to_dict())
    return load_transform(prepared)


def _fit(data: Data, fitting: Fitting, part: Part, work: str, notify: Progress) -> Transform:
    def moments(group: int) -> dict[str, Any]:
        def take() -> dict[str, Any]:
            found = (piece_moments(piece, part.kind, fitting, data.bad_rows) for piece in part.groups[group])
            return Moments.merge_all(found, fitting.width).to_dict()

        return once(storage.join(work, f"moments-{group:06d}.json"), take)

    groups = run_tasks(moments, len(part.groups), lambda done, count: notify("statistics", done, count))
    total = Moments.merge_all((Moments.from_dict(values, fitting.width) for values in groups), fitting.width)
    if total.count == 0:
        raise UserError(f"{part.key}: no usable rows in months {part.months}")
    return fitting.fit(total, {"source": part.source, "kind": part.kind, "months": part.months, "rows": total.count})


def piece_moments(piece: flat.Piece, kind: str, fitting: Fitting, bad_rows: str) -> Moments:
    """Moments of a piece's usable rows, as the transform is fitted on them."""
    if fitting.raw and piece.selection is None:
        total = Moments.merge_all(
            (Moments.of_columns(fitting.raw_columns(columns)) for columns in flat.read_columns(piece, fitting.variables)), fitting.width
        )
        if usable(total):
            return total
    blocks = clean(flat.read_piece(piece, fitting.variables, kind=kind), piece.path, bad_rows, Tally.empty(fitting.variables))
    return Moments.merge_all((Moments.of(fitting.columns(block.inputs, block.targets)) for block in blocks), fitting.width)
