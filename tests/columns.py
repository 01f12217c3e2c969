"""The columns of the LEAP competition, which most tests are about."""

from leapray.climsim.schema import KAGGLE, Channels
from leapray.data.features import FEATURES, channels

INPUTS, TARGETS = KAGGLE.raw, KAGGLE.targets
ABLATED, EXACT, SCORED, LEARNED = TARGETS.zero, TARGETS.exact, TARGETS.scored, TARGETS.learned
EXACT_SOURCE = INPUTS.mask(["state_q0002"], range(12, 27))
EXACT_LEVELS = range(12, 27)
CHANNELS = channels(KAGGLE)
GROUPS, group_mask = TARGETS.groups, TARGETS.group


def with_features(count: int) -> Channels:
    """The competition's channels with so many engineered features."""
    return channels(KAGGLE, list(FEATURES)[:count])
