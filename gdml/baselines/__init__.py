"""Baselines: cheap potentials, from which a force field learns the difference to the reference."""

from .baseline import Baseline, as_baseline
from .bonded import Bonded
from .catalogue import BY_NAME
from .labels import BaselineLabels
from .pair_potentials import ZBL, FixedCharges

__all__ = ["BY_NAME", "Baseline", "BaselineLabels", "Bonded", "FixedCharges", "ZBL", "as_baseline"]
