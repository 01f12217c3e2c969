"""Skill and bias by latitude and pressure, of the tendencies."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from leapray.climsim.grid import REFERENCE_PRESSURE, hybrid_levels, pressure
from leapray.climsim.schema import Targets
from leapray.evaluation.plots.quantity import Quantity, profiles
from leapray.evaluation.plots.style import DARK, png, ticks
from leapray.evaluation.results import Zonal
from leapray.evaluation.zonal import DAYS

_LATITUDES = (-60, -30, -15, 0, 15, 30, 60)
_CONTOURS = (0.7, 0.9)
_SKILL_COLORS, _BIAS_COLORS = "viridis", "PuOr_r"
_GRID: dict[str, Any] = {"left": 0.055, "bottom": 0.075, "top": 0.94, "hspace": 0.3}
_SKILL_GRID: dict[str, Any] = _GRID | {"right": 0.92, "wspace": 0.07}
_BIAS_GRID: dict[str, Any] = _GRID | {"right": 0.99, "wspace": 0.05}
_BAR = (0.94, 0.075, 0.014, 0.84)
"""Left, bottom, width and height of the colour bar that all panels share."""
_WIDTH, _HEIGHT, _DPI = 13.5, 7.4, 140
_NO_DATA = "#c8c8c8"
_NOTABLE = 0.25
"""A negative bias beyond this share of the scale gets a dot, for its colour is no other in grey."""


def zonal_skill(targets: Targets, zonal: Zonal) -> bytes:
    """A PNG of R2 of daily zonal means: sine of latitude against pressure, from 0 to 1, with lines at 0.7 and 0.9.

    Grey is where no R2 is told; where none is told at all, the panels say why.
    """
    return png(_skill_figure(targets, zonal))


def zonal_bias(targets: Targets, zonal: Zonal) -> bytes:
    """A PNG of the mean of prediction less truth by latitude and pressure; negative ones are dotted."""
    return png(_bias_figure(targets, zonal))


def _skill_figure(targets: Targets, zonal: Zonal) -> Figure:
    figure, panels = _panels(_SKILL_GRID, targets)
    few = "" if np.isfinite(zonal.r2).any() else f"fewer than {DAYS} days:\nno R² over days"
    for axes, quantity in zip(panels, profiles(targets), strict=False):
        r2 = _section(zonal.r2, quantity)
        mesh = _draw(axes, zonal, r2, cmap=_SKILL_COLORS, vmin=0, vmax=1)
        if np.isfinite(r2).any() and np.nanmin(r2) < _CONTOURS[-1] and np.nanmax(r2) > _CONTOURS[0]:
            lines = axes.contour(*_middles(zonal), r2, levels=_CONTOURS, colors=("white", "black"), linewidths=1.1)
            axes.clabel(lines, fmt="%.1f", fontsize=8)
        if few:
            axes.text(0.5, 0.5, few, transform=axes.transAxes, ha="center", va="center", fontsize=11, color=DARK)
        _dress(axes, f"{quantity.words}, {quantity.symbol}")
    if not few:
        bar = figure.colorbar(mesh, cax=figure.add_axes(_BAR), extend="min", ticks=ticks(5))
        bar.set_label("R² of daily zonal means", fontsize=9)
        bar.ax.tick_params(labelsize=8)
    return figure


def _bias_figure(targets: Targets, zonal: Zonal) -> Figure:
    figure, panels = _panels(_BIAS_GRID, targets)
    for axes, quantity in zip(panels, profiles(targets), strict=False):
        bias = _section(zonal.bias, quantity) * quantity.factor
        finite = np.abs(bias[np.isfinite(bias)])
        # one column of a steep profile must not bleach the others
        scale = float(np.quantile(finite, 0.98)) if finite.size and finite.max() > 0 else 1.0
        mesh = _draw(axes, zonal, bias, cmap=_BIAS_COLORS, vmin=-scale, vmax=scale)
        sines, pressures = np.meshgrid(*_middles(zonal))
        negative = bias < -_NOTABLE * scale
        axes.plot(
            sines[negative], pressures[negative], "o", markersize=2.2, markerfacecolor="black", markeredgecolor="white", markeredgewidth=0.4
        )
        _dress(axes, f"{quantity.words}: bias of {quantity.symbol}")
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, extend="both", ticks=ticks(5))
        # above the bar, where the labels of its neighbours do not reach
        bar.ax.set_title(quantity.unit, fontsize=8.5, loc="left")
        bar.ax.tick_params(labelsize=8)
    return figure


def _panels(grid: dict[str, Any], targets: Targets) -> tuple[Figure, np.ndarray]:
    """Panels in two rows, one for each tendency."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI)
    count = len(targets.profiles)
    panels = figure.subplots(2, -(-count // 2), sharey=True, squeeze=False, gridspec_kw=grid).ravel()
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels


def _section(values: np.ndarray, quantity: Quantity) -> np.ndarray:
    """Values by level and band ``(levels, z)``, NaN where a column is not learned."""
    return quantity.of_learned(values).T


def _middles(zonal: Zonal) -> tuple[np.ndarray, np.ndarray]:
    sines = np.sin(np.radians(zonal.edges))
    return (sines[:-1] + sines[1:]) / 2, pressure(np.array([REFERENCE_PRESSURE]))[0] / 100


def _draw(axes: Axes, zonal: Zonal, values: np.ndarray, **colors: Any) -> ScalarMappable:
    levels = hybrid_levels()
    interfaces = (levels.a_interface + levels.b_interface) * REFERENCE_PRESSURE / 100
    axes.set_facecolor(_NO_DATA)
    return axes.pcolormesh(np.sin(np.radians(zonal.edges)), interfaces, values, **colors)


def _dress(axes: Axes, title: str) -> None:
    axes.set_xticks(np.sin(np.radians(_LATITUDES)), [f"{abs(lat)}°{'S' if lat < 0 else 'N' if lat else ''}" for lat in _LATITUDES])
    axes.set_ylim(1000, 0)
    axes.tick_params(labelsize=8)
    place = axes.get_subplotspec()
    if place.is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel("pressure (hPa)", fontsize=9)
    if place.is_last_row():  # type: ignore[union-attr]
        axes.set_xlabel("latitude (equal areas)", fontsize=9)
    axes.set_title(title, fontsize=9.5, loc="left")
