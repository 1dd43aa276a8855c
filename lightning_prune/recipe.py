"""A recipe: the chosen parts of a pruning run as one frozen value."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from torch import Tensor

from lightning_prune import schedules
from lightning_prune.compensation import LeastSquares, NoRepair
from lightning_prune.criteria import ActivationCriterion, GradientCriterion, ObservingCriterion, SampleCriterion
from lightning_prune.optimizer.policies import Mask, OptimizerPolicy, as_policies
from lightning_prune.schedules import Schedule
from lightning_prune.selection.allocation import Allocation
from lightning_prune.selection.granularity import Channel, Element, Granularity
from lightning_prune.selection.needs import Each, Need, as_needs
from lightning_prune.selection.targets import Targets
from lightning_prune.values import check_whole

Count = Literal["channels", "params", "macs"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The chosen parts of a pruning run.

    Args:
        schedule: completed optimizer steps -> cumulative sparsity.
        granularity: the unit of removal.
        criterion: which units matter. None: at an event that repairs channels by Reconstruction, if the allocation is
            None too and it takes seconds; else by Fisher, which watches gradients, where the run has seen those of all
            targets at an event, as in a fit; otherwise by Magnitude.
        allocation: how the sparsity is spread over targets or channel groups. None: by Global; for Channel per cost in
            what the recipe counts where gradients tell, and by Uniform where they do not.
        targets: what may be pruned; for Channel: the layers whose output channels may go.
        count: what the sparsity counts. "channels": the channels that can be removed (Channel only); "params" and
            "macs": parameters and multiply-accumulates of the whole network. None: the units of the granularity
            (weights of the targets; channels).
        need: what the pruned network has to come down to: ``MACs(0.3)``, ``Params(0.5)``, ``Size(bytes=2_000_000)``,
            ``Memory(bytes=8_000_000)``, several in a tuple for one network that meets them all, or
            ``Each((MACs(0.6), MACs(0.3)))`` for a network of each in one fit. The schedule, without a
            ``final_sparsity`` of its own, then says how fast the run gets there from the dense network. For Channel;
            where gradients tell, as with Fisher(), and no allocation is named, those widths are chosen that keep most
            score (see :mod:`lightning_prune.selection.knapsack`).
        optimizer_policy: what happens to optimizer, learning rate and weights after an event; several in a tuple.
        repair: how what is left takes over for what went, at each event. None: by least squares in
            :func:`~lightning_prune.prune`; in a fit so for channels, where the run can do it, otherwise without, and
            for smaller units by training alone. NoRepair(): it does not.

    Example:
        >>> recipe = Recipe(schedule=schedules.OneShot(final_sparsity=0.5, begin_step=30))
        >>> recipe.granularity, recipe.criterion
        (Element(), None)
    """

    schedule: Schedule
    granularity: Granularity | Channel = field(default_factory=Element)
    # Criterion, but jsonargparse takes a callable that returns a Tensor for one that makes instances of that class
    criterion: Callable[[str, Tensor], Any] | GradientCriterion | ActivationCriterion | None = None
    allocation: Allocation | None = None
    targets: Targets = field(default_factory=Targets)
    count: Count | None = None
    need: Need | Each | Sequence[Need] | None = None
    optimizer_policy: OptimizerPolicy | Sequence[OptimizerPolicy] = field(default_factory=Mask)
    repair: LeastSquares | NoRepair | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.granularity, Granularity | Channel):
            raise TypeError(
                f"Recipe.granularity must be Element(), NOfM(n, m), Block(shape) or Channel(), got {self.granularity!r}"
            )
        examples = {"schedule": "OneShot(0.5)", "criterion": "Magnitude()", "allocation": "Global()"}
        for name, example in examples.items():
            given = getattr(self, name)
            if given is None and name != "schedule":
                continue
            if isinstance(given, type) or not (callable(given) or isinstance(given, ObservingCriterion)):
                raise TypeError(f"Recipe.{name} must be a function or a value such as {example}, got {given!r}")
        if isinstance(self.criterion, SampleCriterion):
            check_whole(f"{type(self.criterion).__name__}.samples", self.criterion.samples, 1)
        if not isinstance(self.targets, Targets):
            raise TypeError(f"Recipe.targets must be Targets(include=…, exclude=…), got {self.targets!r}")
        if self.count not in (None, "channels", "params", "macs"):
            raise ValueError(f'Recipe.count must be "channels", "params" or "macs", got {self.count!r}')
        if self.count == "channels" and not self.is_structured:
            raise ValueError(f'Recipe.count = "channels" needs granularity=Channel(), got {self.granularity}')
        self._check_need()
        policies = as_policies(self.optimizer_policy)
        if not isinstance(self.repair, LeastSquares | NoRepair | None):
            raise TypeError(f"Recipe.repair must be LeastSquares(), NoRepair() or None, got {self.repair!r}")
        if isinstance(self.repair, LeastSquares) and any(policy.keeps_weights for policy in policies):
            raise ValueError(
                f"Recipe.repair changes weights, and optimizer_policy={self.optimizer_policy!r} sets them back after"
                " each event: leave one of them out"
            )
        self._check_schedule()

    def _check_need(self) -> None:
        needs = as_needs(self.need)
        if self.need is None:
            return
        for need in needs:
            if not isinstance(need, Need):
                raise TypeError(f"Recipe.need must be one such as MACs(0.3) or several of them, got {self.need!r:.80}")
        if not needs:
            raise ValueError("Recipe.need is empty: name one such as MACs(0.3), or leave it out")
        if not self.is_structured:
            raise ValueError(
                f"Recipe.need = {self.need!r} needs granularity=Channel(), got {self.granularity}: zeros cost what"
                " other weights cost"
            )
        if self.count is not None:
            raise ValueError(f'Recipe.count = "{self.count}": need={self.need!r} says what counts, leave count out')
        schedule = schedules.timed(self.schedule)
        if schedule.final_sparsity is not None:
            raise ValueError(
                f"Recipe.schedule = {self.schedule!r} ends at a sparsity of its own, and need={self.need!r} says where"
                " it ends: leave final_sparsity out of a built-in schedule, as in Polynomial(end_step=1000)"
            )

    def _check_schedule(self) -> None:
        if self.need is not None:
            return
        final = schedules.timed(self.schedule).final
        if not 0 < final < 1:
            raise ValueError(f"Recipe.schedule ends at sparsity {final!r}; it must lie in (0, 1), or nothing is pruned")
        if isinstance(self.granularity, Granularity) and self.count is None:
            full = self.granularity.full_sparsity
            if final > full + 1e-9 or (self.granularity.must_be_full and final < full - 1e-9):
                raise ValueError(
                    f"{self.granularity} ends at sparsity {full!r}, and the schedule at {final!r}; set"
                    f" final_sparsity={full!r}"
                )

    @property
    def is_structured(self) -> bool:
        """Whether whole channels go, so that layers become smaller."""
        return isinstance(self.granularity, Channel)

    @property
    def needs_example(self) -> bool:
        """Whether the model has to be traced or run, so that an example of what its forward takes is asked for."""
        return self.is_structured or self.count == "macs"

    @property
    def counted(self) -> str:
        """What its sparsity counts, in a word: ``MACs``, ``params``, ``channels``, ``weights``."""
        units = "channels" if self.is_structured else "weights"
        return " and ".join(type(need).__name__ for need in as_needs(self.need)) or self.count or units

    @property
    def repairing(self) -> LeastSquares | None:
        """What repairs at the events of a fit: what is named or, where that is left open and channels go, the usual."""
        if self.repair is None and self.is_structured:
            goes_back = any(policy.keeps_weights for policy in as_policies(self.optimizer_policy))
            return None if goes_back else LeastSquares()
        return self.repair if isinstance(self.repair, LeastSquares) else None

    @property
    def is_open(self) -> bool:
        """Whether it names neither criterion nor allocation."""
        return self.criterion is None and self.allocation is None

    @property
    def looking(self) -> LeastSquares | SampleCriterion | None:
        """What it names that looks at samples, so that a run which cannot show any refuses it; None: nothing."""
        named = (part for part in (self.repair, self.criterion) if isinstance(part, LeastSquares | SampleCriterion))
        return next(named, None)

    @property
    def samples(self) -> int:
        """How many samples repair and a criterion look at, at an event; 0: none."""
        parts = (self.repairing, self.criterion)
        return max((part.samples for part in parts if isinstance(part, LeastSquares | SampleCriterion)), default=0)

    def rehearsed(self) -> "Recipe":
        """Return it as one event at its end after the first step: what ``fast_dev_run`` shows."""
        final, need = schedules.timed(self.schedule).final_sparsity, as_needs(self.need) or None
        policies = tuple(policy.rehearsed() for policy in as_policies(self.optimizer_policy))
        shown = schedules.OneShot(final, begin_step=1)
        return replace(self, schedule=shown, optimizer_policy=policies, need=need)

    def describe(self) -> dict[str, str]:
        """Return every field as text, which a checkpoint keeps; equal in every process for recipes that prune alike.

        A function of your own appears by its qualified name, so another function of that name looks the same.

        Example:
            >>> recipe = Recipe(schedule=schedules.OneShot(0.5), criterion=lambda name, w: w.abs())
            >>> recipe.describe()["criterion"]
            '<function <lambda>>'
        """
        policies = sorted(as_policies(self.optimizer_policy), key=repr)
        return {f.name: _text(getattr(self, f.name)) for f in fields(self)} | {"optimizer_policy": _text(policies)}


def _text(value: object) -> str:
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))
