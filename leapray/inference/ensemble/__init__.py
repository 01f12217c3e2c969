"""Ensembles: members whose physical predictions are averaged, with weights that are solved for on months that chose no model."""

from leapray.inference.ensemble.ensemble import Ensembled, ensemble
from leapray.inference.ensemble.table import show

__all__ = ["Ensembled", "ensemble", "show"]
