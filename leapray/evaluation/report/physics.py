"""Sections on what predictions are as fields: where they are skilful, their biases, the surface, rain, and ClimSim's own metrics."""

from __future__ import annotations

from collections.abc import Sequence

from leapray.climsim.schema import Targets, Variable
from leapray.evaluation.climsim import TOLD, VARYING, unit
from leapray.evaluation.metrics import Score
from leapray.evaluation.plots.latitude import zonal_bias, zonal_skill
from leapray.evaluation.plots.levels import Curve, bias_profiles
from leapray.evaluation.plots.quantity import profiles
from leapray.evaluation.plots.quantity import scalars as surface
from leapray.evaluation.plots.rain import precipitation
from leapray.evaluation.plots.surface import joint_densities
from leapray.evaluation.report.page import Cell, Picture, Section, Table, counted, figure, score, text
from leapray.evaluation.results import ClimSim, Evaluation
from leapray.evaluation.zonal import DAYS

_METRICS = {"mae": "MAE", "rmse": "RMSE", "bias": "bias", "crps": "CRPS", "r2": "R² (ClimSim's)"}


def maps(subject: Evaluation) -> Section | None:
    """Pressure against latitude; None where rows do not tell their place."""
    if subject.zonal is None:
        return None
    picture = Picture(
        zonal_skill(subject.targets, subject.zonal), f"R² of daily zonal means of {subject.name} by latitude and pressure, by tendency"
    )
    days = len(subject.moments.blocks)
    words = [
        "R² over days of means over bands of 10° of latitude, weighted by area; white and black lines are at 0.7 and 0.9. "
        "Grey: targets that are not learned, and means that hardly vary from day to day.",
        f"These are {counted(days, 'day')} of {counted(round(subject.rows / days), 'row')} on average. R² needs at least {DAYS} days; "
        "where a day holds few time steps, its mean also follows the hour.",
    ]
    return Section("maps", "R² by latitude and pressure", words, [picture])


def biases(evaluations: Sequence[Evaluation], shown: Sequence[Evaluation]) -> Section:
    """Mean profiles and biases of those that are ``shown``, maps of the subject, a table of all."""
    subject = evaluations[0]
    curves = [Curve(evaluation.name, evaluation.bias) for evaluation in shown]
    names = ", ".join(curve.name for curve in curves)
    content: list[Table | Picture] = []
    if subject.targets.profiles:
        told = f"Mean profiles of truth and {subject.name}, and below them biases of {names}"
        content.append(Picture(bias_profiles(subject.targets, subject.mean, curves), told))
    if subject.zonal is not None:
        content.append(Picture(zonal_bias(subject.targets, subject.zonal), f"Bias of {subject.name} by latitude and pressure, by tendency"))
    rows = [
        [
            text(quantity.words),
            text(quantity.unit),
            figure(float(subject.mean[quantity.columns][0]) * quantity.factor),
            *(figure(float(evaluation.bias[quantity.columns][0]) * quantity.factor) for evaluation in evaluations),
        ]
        for quantity in surface(subject.targets)
    ]
    header = ["surface flux", "unit", "mean of truth", *(f"bias of {evaluation.name}" for evaluation in evaluations)]
    if rows:
        content.append(Table("Biases at the surface", header, rows))
    words = ["Bias is the mean of prediction less truth over all rows, which are not weighted by area."]
    if subject.zonal is not None:
        words.append("On the maps, dots mark negative biases.")
    return Section("bias", "Bias", words, content)


def scalars(subject: Evaluation) -> Section | None:
    """Truth against prediction at the surface."""
    if subject.joint is None:
        return None
    picture = Picture(
        joint_densities(subject.targets, subject.joint), f"Joint density of truth and prediction of {subject.name} for the surface fluxes"
    )
    words = ["Rows by truth and prediction; the dashed line is where both are equal. What lies beyond an edge is counted in the last bin."]
    return Section("scalars", "Surface fluxes", words, [picture])


def rain(evaluations: Sequence[Evaluation]) -> Section | None:
    """Precipitation's distribution, and the column's moistening."""
    found = [(evaluation.name, evaluation.precipitation) for evaluation in evaluations if evaluation.precipitation is not None]
    if not found:
        return None
    names = ", ".join(name for name, _ in found)
    picture = Picture(precipitation(found), f"Distribution of precipitation, and moistening by precipitation, of truth and {names}")
    words = ["Left, how often it rains how much; right, the mean tendency of all water in the column where it truly rains so much."]
    return Section("precipitation", "Precipitation", words, [picture])


def own_metrics(evaluations: Sequence[Evaluation]) -> Section | None:
    """ClimSim's own metrics and CRPS, where there are any."""
    subject = evaluations[0]
    content = []
    words = []
    if subject.climsim is not None:
        words.append(
            "ClimSim's metrics are of energy fluxes, weighted by mass and area, over time in each column of the grid, then averaged over "
            "columns: its R² is below the competition's, which pools time and place, wherever a column varies little."
        )
        words.append(
            "Two things differ from the official code. It weights winds by mass, area and wind speed; here they are not weighted. "
            "It averages R² over all grid columns, and so gets minus infinity where one is constant; here R² is over the grid columns "
            f"with at least {VARYING:g} of the variance of the competition's training set, a level where fewer than {TOLD:.0%} of them "
            "vary is left out of a variable's mean, and a dash stands where no level is left."
        )
        content.append(_metric_table(subject.name, subject.climsim, subject.moments.score()))
    beside = [(evaluation.name, evaluation.climsim) for evaluation in evaluations if evaluation.climsim is not None]
    if len(beside) > 1:
        content.append(_error_table(subject.targets, beside))
    if subject.crps is not None:
        words.append(
            "CRPS is the fair score of the members as an ensemble: mean absolute error where all agree, less where they spread rightly."
        )
        content.append(_crps_table(subject))
    return Section("climsim", "ClimSim's own metrics", words, content) if content else None


def _metric_table(name: str, metrics: ClimSim, scores: Score) -> Table:
    found, skill, r2 = metrics.by_variable(scores.targets), scores.skill_by_variable(), scores.by_variable()
    told = [metric for metric in _METRICS if metric in next(iter(found.values()))]
    rows = [
        [
            text(variable.name),
            _unit(variable),
            *(figure(found[variable.name][metric]) for metric in told),
            score(r2[variable.name]),
            score(skill[variable.name]),
        ]
        for variable in scores.targets.variables
    ]
    header = ["", "unit", *(_METRICS[metric] for metric in told), "R² (competition)", "skill"]
    return Table(f"{name}: ClimSim's metrics by variable, the mean over levels", header, rows)


def _unit(variable: Variable) -> Cell:
    return text(unit(variable).replace("m2", "m²"))


def _error_table(targets: Targets, found: Sequence[tuple[str, ClimSim]]) -> Table:
    values = [metrics.by_variable(targets) for _, metrics in found]
    rows = [[text(variable.name), _unit(variable), *(figure(of[variable.name]["mae"]) for of in values)] for variable in targets.variables]
    return Table("ClimSim's MAE by variable", ["", "unit", *(name for name, _ in found)], rows)


def _crps_table(subject: Evaluation) -> Table:
    assert subject.crps is not None
    rows = [
        [
            text(quantity.words),
            text(quantity.unit),
            *(figure(float(of[quantity.columns].mean()) * quantity.factor) for of in (subject.crps, subject.mae)),
        ]
        for quantity in (*profiles(subject.targets), *surface(subject.targets))
    ]
    return Table(
        "CRPS in physical units, the mean over rows and levels", ("", "unit", "CRPS of the members", f"MAE of {subject.name}"), rows
    )
