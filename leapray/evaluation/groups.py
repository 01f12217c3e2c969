"""Target variables taken together: what the summaries tell apart, and what an ensemble may weigh apart."""

from __future__ import annotations

import numpy as np

from leapray.climsim.schema import FLUXES, LEARNED, TARGETS

GROUPS: dict[str, tuple[str, ...]] = {
    "temperature": ("ptend_t",),
    "vapour": ("ptend_q0001",),
    "cloud": ("ptend_q0002", "ptend_q0003"),
    "wind": ("ptend_u", "ptend_v"),
    "surface": tuple(flux.name for flux in FLUXES),
}
"""Names of target variables by group; each is in one."""


def group_mask(group: str) -> np.ndarray:
    """Boolean ``(368,)``: the learned columns of a group."""
    mask = np.zeros(TARGETS.width, dtype=bool)
    for variable in GROUPS[group]:
        mask[TARGETS[variable]] = True
    return mask & LEARNED


def by_group(values: np.ndarray) -> dict[str, float]:
    """Mean of ``values (368,)``, skill or R2, over the learned columns of each group."""
    return {group: float(values[group_mask(group)].mean()) for group in GROUPS}
