"""The continuous ranked probability score of an ensemble, in its fair form (Ferro 2014)."""

from __future__ import annotations

import numpy as np


def fair_crps(truth: np.ndarray, members: np.ndarray) -> np.ndarray:
    """CRPS of each number, in its unit: truth of any shape, ``members (M, *shape)``.

    ``mean |x_m - y| - sum_i gap_i i (M - i) / (M (M - 1))`` with the gaps between the sorted members: half the mean distance between two
    different members, so that the score does not depend on how many there are. Raises ValueError for fewer than two members.
    """
    count = len(members)
    if count < 2:
        raise ValueError(f"the CRPS needs two members or more, not {count}")
    score: np.ndarray = np.abs(members - truth).mean(axis=0)
    below = np.arange(1, count)
    pairs = below * (count - below) / (count * (count - 1))
    score -= np.tensordot(pairs, np.diff(np.sort(members, axis=0), axis=0), axes=1)
    return score
