"""Norms folded away: into the layers beside them, with proof that the model computes the same."""

from __future__ import annotations

from normkit.models.folding.module import fold, fold_with_report, plan_folds
from normkit.models.folding.report import FoldReport

__all__ = ["FoldReport", "fold", "fold_with_report", "plan_folds"]
