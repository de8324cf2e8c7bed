"""Running statistics taken anew from data, exactly, all layers or none."""

from normkit.models.recalibration.run import recalibrate
from normkit.models.recalibration.shifts import Shift, Shifts

__all__ = ["Shift", "Shifts", "recalibrate"]
