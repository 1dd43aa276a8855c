"""What pruning a trained model did, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_prune.compensation import Repair
from lightning_prune.model.summary import Summary
from lightning_prune.run.event import Event
from lightning_prune.run.lines import stay_line
from lightning_prune.study.tried import Tried


@dataclass(frozen=True)
class Pruned:
    """What :func:`prune` did; ``str()`` of it tells it in a few lines.

    Args:
        before: the model before, by layers.
        after: the model after.
        events: one record a round.
        stayed: channel group -> why its channels stay; empty for single weights.
        chosen_by: the criterion of the last round and, where the one that was meant cannot score this model, why.
        metric: name of the metric; empty without one.
        metric_before: its value before; None without a metric.
        metric_after: its value after.
        tried: all networks that were tried, where ``max_drop`` bounds how far it goes.
    """

    before: Summary
    after: Summary
    events: tuple[Event, ...]
    stayed: Mapping[str, str] = field(default_factory=dict)
    chosen_by: str = ""
    metric: str = ""
    metric_before: float | None = None
    metric_after: float | None = None
    tried: Tried | None = None

    @property
    def repairs(self) -> tuple[Repair, ...]:
        """What repair did to each layer in the last round, in the order in which they run; empty without."""
        return self.events[-1].repairs

    @property
    def left(self) -> int:
        """Number of parameters that are left, without the zeros that pruning made."""
        return self.after.parameters - self.after.zeros + self.after.blank

    def __str__(self) -> str:
        lines = [f"parameters  {self.before.parameters:,} -> {self.left:,}"]
        if self.before.macs is not None and self.after.effective_macs is not None:
            lines.append(f"MACs        {self.before.macs:,} -> {self.after.effective_macs:,}")
        if self.metric_before is not None and self.metric_after is not None:
            lines.append(f"{self.metric:<11} {self.metric_before:.4f} -> {self.metric_after:.4f}")
        if self.tried is not None:
            within = sum(one.is_kept for one in self.tried.attempts)
            lines.append(f"tried       {len(self.tried.attempts)} networks, {within} within the drop")
        every = [repair for event in self.events for repair in event.repairs]
        if every:
            mended, layers = {repair.name for repair in every if repair.is_done}, {repair.name for repair in every}
            lines.append(f"repaired    {len(mended)} of {len(layers)} layers")
        lines.append(f"chosen by   {self.chosen_by}")
        lines.append(stay_line(self.stayed))
        return "\n".join(filter(None, lines))
