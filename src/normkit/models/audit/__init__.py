"""Looks for faults of normalization in a model."""

from __future__ import annotations

from normkit.models.audit.audit import audit
from normkit.models.audit.evidence import Configuration, Evidence
from normkit.models.audit.findings import SEVERITIES, Finding, LayerRecord, Report, Skipped
from normkit.models.audit.rule import Rule
from normkit.models.audit.rules import RULES

__all__ = [
    "RULES",
    "SEVERITIES",
    "Configuration",
    "Evidence",
    "Finding",
    "LayerRecord",
    "Report",
    "Rule",
    "Skipped",
    "audit",
]
