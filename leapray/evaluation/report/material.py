"""What a report shows beside evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Material:
    """All that is not known leaves its section out."""

    title: str = "Evaluation"
    runs: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    """Records of ``metrics.jsonl`` by the run's name."""
    variants: Mapping[str, Any] | None = None
    """What ``variants.json`` holds."""
    ensemble: Mapping[str, Any] | None = None
    """What ``ensemble.json`` holds."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """What was predicted and from what: truth, months, versions, revision, command, by their names."""
