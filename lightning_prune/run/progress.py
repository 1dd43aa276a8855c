"""How far a recipe has come: what changes in a pruner while a run goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_prune.criteria import Observations


@dataclass
class Progress:
    """How far a recipe has come in a run.

    Args:
        asked: the sparsity of the last event.
        observed: what an observing criterion has seen since then.
        scales: channel group -> mean score of its channels at the first event, which is what Global divides by; None:
            there was no event yet.
    """

    asked: float = 0.0
    observed: Observations = field(default_factory=Observations)
    scales: Mapping[str, float] | None = None
