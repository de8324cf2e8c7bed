"""Running statistics taken anew from data, exactly, all layers or none."""

from normkit.models.recalibrate.run import recalibrate
from normkit.models.recalibrate.shifts import Shift, Shifts

__all__ = ["Shift", "Shifts", "recalibrate"]
