"""leapray: from ClimSim's climate-model physics to trained, scored and exportable emulators, on Ray."""

__version__ = "0.1.0"
