"""leapray: from ClimSim's climate-model physics to trained, scored and exportable emulators, on Ray."""

import os

__version__ = "0.1.0"

# libgomp's threads spin while they wait: for long, and Ray's other processes starve; not at all, and an LSTM's short kernels crawl
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
