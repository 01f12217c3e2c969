"""leapray: from ClimSim's climate-model physics to trained, scored and exportable emulators, on Ray."""

import os
import tempfile

__version__ = "0.1.0"

# libgomp's threads spin while they wait: for long, and Ray's other processes starve; not at all, and an LSTM's short kernels crawl
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

TMPDIR = "LEAPRAY_TMPDIR"
"""Variable with the TMPDIR of a process that has started Ray with another one, whose path is shorter."""
if TMPDIR in os.environ:
    os.environ["TMPDIR"] = os.environ.pop(TMPDIR)
    tempfile.tempdir = None
