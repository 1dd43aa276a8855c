"""The exceptions of lightning_prune.

A wrong argument is a ``ValueError`` or ``TypeError``; a wrong *state* (of a model, an optimizer, a checkpoint or a
file) is a subclass of :class:`PruningError`.
"""


class PruningError(RuntimeError):
    """Pruning cannot go on in the state that model, optimizer or checkpoint are in."""


class NonFiniteError(PruningError):
    """A weight or a score is NaN or infinite."""


class ScoringError(PruningError):
    """A criterion cannot score what is to be pruned."""


class GraphError(PruningError):
    """The model cannot be traced with the example input, or its graph cannot be used."""


class OptimizerStateError(PruningError):
    """The state of an optimizer cannot be carried over a pruning event."""


class CompactionError(PruningError):
    """A removal plan does not fit the model, or the compact model computes something else than the masked one."""


class CheckpointError(PruningError):
    """A checkpoint does not fit the model or the recipe."""


class SnapshotError(PruningError):
    """A snapshot cannot be stored or read back, or does not fit what is to be restored."""


class ExportError(PruningError):
    """The model cannot be exported."""


class SessionError(PruningError):
    """Calls of a program cannot go on: another thread is in one, or what the program keeps is lost."""


class VerificationError(ExportError):
    """The exported file does not compute what the model computes."""
