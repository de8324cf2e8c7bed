"""Tools for whole models: their norms found, examined, repaired, folded away and converted."""

from __future__ import annotations

from normkit.models.auditing import Configuration, Report, audit
from normkit.models.conversion import convert
from normkit.models.folding import FoldReport, fold, fold_with_report, plan_folds
from normkit.models.folding.files import fold_file
from normkit.models.inserting import insert, remove
from normkit.models.opening import Opened, open_data, open_model
from normkit.models.porting import NormWeights, Ported, port
from normkit.models.recalibration import Shift, Shifts, recalibrate
from normkit.models.saving import save_weights
from normkit.models.sites import NormSite, find_sites
from normkit.models.watching import KerasCallback, LightningCallback, Watch, read_records, watch
from normkit.torch import accelerate, freeze, unfreeze

__all__ = [
    "Configuration",
    "FoldReport",
    "KerasCallback",
    "LightningCallback",
    "NormSite",
    "NormWeights",
    "Opened",
    "Ported",
    "Report",
    "Shift",
    "Shifts",
    "Watch",
    "accelerate",
    "audit",
    "convert",
    "find_sites",
    "fold",
    "fold_file",
    "fold_with_report",
    "freeze",
    "insert",
    "open_data",
    "open_model",
    "plan_folds",
    "port",
    "read_records",
    "recalibrate",
    "remove",
    "save_weights",
    "unfreeze",
    "watch",
]
