"""What is kept takes over for what goes."""

from lightning_prune.compensation.inputs import Call, LastInputs
from lightning_prune.compensation.least_squares import LeastSquares, NoRepair
from lightning_prune.compensation.reconstruction import Reconstruction, usual
from lightning_prune.compensation.repair import Repair, Wanted, joined, record, record_or_say, refit

BUILT_IN = (LeastSquares, NoRepair, Reconstruction)
"""What a recipe names, and a checkpoint may hold."""

__all__ = [
    "BUILT_IN",
    "Call",
    "LastInputs",
    "LeastSquares",
    "NoRepair",
    "Reconstruction",
    "Repair",
    "Wanted",
    "joined",
    "record",
    "record_or_say",
    "refit",
    "usual",
]
