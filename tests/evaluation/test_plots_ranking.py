import io

import matplotlib.image
import pytest

from leapray.evaluation.plots import Ranked, ranking
from leapray.evaluation.plots import ranking as _
from leapray.evaluation.plots.style import score_limits
