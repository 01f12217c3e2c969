"""Synthetic ClimSim: an idealised climate and column physics, in the official variables and file layout."""

from leapray.climsim.synthetic.world import World
from leapray.climsim.synthetic.write import chosen_steps, synthesize

__all__ = ["World", "chosen_steps", "synthesize"]
