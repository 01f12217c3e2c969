"""leapray: from ClimSim's climate-model physics to trained, scored and exportable emulators, on Ray."""

import os

__version__ = "0.1.0"

# threads that spin while they wait starve the others when Ray's processes share the cores; it must stand before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
