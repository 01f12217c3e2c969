"""Export of emulators for online coupling: files that run without leapray."""

from leapray.inference.export.export import Exported, export

__all__ = ["Exported", "export"]
