"""The columns of the LEAP competition, which most tests are about."""

from leapray.climsim.schema import KAGGLE
from leapray.data.features import channels

INPUTS, TARGETS = KAGGLE.raw, KAGGLE.targets
ABLATED, EXACT, SCORED, LEARNED = TARGETS.zero, TARGETS.exact, TARGETS.scored, TARGETS.learned
EXACT_SOURCE = INPUTS.mask(["state_q0002"], range(12, 27))
EXACT_LEVELS = range(12, 27)
CHANNELS = channels(KAGGLE)
