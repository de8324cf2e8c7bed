"""The auditor's rules, in the order in which they run."""

from __future__ import annotations

from types import ModuleType

from normkit.models.auditing.rule import Rule
from normkit.models.auditing.rules import (
    behaviour,
    silence,
    statistics,
    structure,
    tracking,
    training,
    weights,
)

__all__ = ["RULES"]


def _rules(module: ModuleType) -> list[Rule]:
    return [value for value in vars(module).values() if isinstance(value, Rule)]


_MODULES = (weights, tracking, structure, training, statistics, silence, behaviour)

RULES: tuple[Rule, ...] = tuple(rule for module in _MODULES for rule in _rules(module))
