"""Looks for faults of normalization in a model."""

from __future__ import annotations

from normkit.models.auditing.audit import audit
from normkit.models.auditing.evidence import Configuration, Evidence
from normkit.models.auditing.findings import SEVERITIES, Finding, LayerRecord, Skipped
from normkit.models.auditing.report import Report
from normkit.models.auditing.rule import Rule
from normkit.models.auditing.rules import RULES

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
