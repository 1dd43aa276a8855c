"""One pruning run on one model: its pruners, policies and step counter, and the state that a resume needs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune import schedules
from lightning_prune.compaction import Compaction
from lightning_prune.compensation import LeastSquares
from lightning_prune.distributed import ranks, shards
from lightning_prune.model import masks
from lightning_prune.model.example import Inputs
from lightning_prune.model.frame import Frame
from lightning_prune.optimizer.carrying import PolicyRuntime
from lightning_prune.optimizer.context import Scheduler
from lightning_prune.optimizer.surgery import parameters_of
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind, check_finite, last_inputs
from lightning_prune.run.bound import BoundModel
from lightning_prune.run.copies import Copies
from lightning_prune.run.event import Event
from lightning_prune.run.pruner import Pruner, check_masked, describe, prune_step
from lightning_prune.run.resuming import check_same, take_up
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.needs import next_stop


class PruningRun:
    """Prunes one model by one or several recipes while optimizers step; knows nothing of Lightning.

    Args:
        recipes: with different targets.
        model: gets all-True masks; nothing else holds it.
        example_inputs: arguments of its forward, where a recipe needs them.
        total_steps: optimizer steps of the run; None when unknown.

    Raises:
        ValueError: a recipe does not fit the model, or two recipes share a target.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        model: nn.Module,
        example_inputs: Inputs | None,
        total_steps: int | None,
    ) -> None:
        _check_disjoint(recipes, model)
        self._total_steps = total_steps
        self.pruners = _introduced([bind(recipe, model, example_inputs, total_steps) for recipe in recipes])
        self.step = 0
        self.sparsity = 0.0
        self._looked_at = self._waits_at = -1
        self._stay: set[str] = set()
        self._runtimes: list[PolicyRuntime] = []
        self._policy_state: list[Mapping[str, Any]] = []
        self._handles: list[RemovableHandle] = []
        self._inputs = last_inputs(recipes, self._is_look_near)
        self._copies: Copies | None = None
        self._seen_copies: Mapping[str, Any] = {}
        self.attach(model)

    @property
    def base(self) -> Compaction | None:
        """The removals that had shaped the model when the run was set up."""
        return self.pruners[0].base

    @property
    def last_step(self) -> int | None:
        """The step of the last event of all recipes; None when a schedule does not tell."""
        steps = [pruner.schedule.final_step for pruner in self.pruners]
        known = [step for step in steps if step is not None]
        return max(known) if len(known) == len(steps) else None

    @property
    def is_started(self) -> bool:
        """Whether it has hold of the optimizers."""
        return bool(self._handles)

    @property
    def asked(self) -> dict[int, float]:
        """Index of each recipe -> the sparsity of its last event."""
        return {index: pruner.asked for index, pruner in enumerate(self.pruners)}

    @property
    def unfinished(self) -> list[Pruner]:
        """The pruners that have not asked for their final sparsity yet."""
        return [pruner for pruner in self.pruners if not pruner.is_finished]

    def attach(self, model: nn.Module) -> None:
        """Put masks on whatever the recipes mask and has none yet."""
        for pruner in self.pruners:
            pruner.attach(model)

    def rebind(self, model: nn.Module, example_inputs: Inputs | None) -> None:
        """Look at the model anew when its shapes have changed, other than by the removals of this run."""
        parameters = masks.dense_parameters(model)
        for index, pruner in enumerate(self.pruners):
            bound = BoundModel(model, pruner.base)
            held = {name: shape for name, shape in pruner.units.shapes.items() if name in parameters}
            expected = {name: bound.shape_now(name, shape) for name, shape in held.items()}
            if {name: tuple(parameters[name].shape) for name in held} != expected or len(held) < len(
                pruner.units.shapes
            ):
                fresh = bind(pruner.recipe, model, example_inputs, self._total_steps)
                self.pruners[index] = replace(fresh, progress=pruner.progress)
        self.pruners = _introduced(self.pruners)

    def set_length(self, total_steps: int | None) -> None:
        """Let shares of the run mean shares of so many steps, while no step is done; None, unknown, changes nothing.

        Raises:
            ValueError: begin and end of a schedule fall together.
        """
        if self.step == 0 and total_steps not in (None, self._total_steps):
            self._total_steps = total_steps
            self.pruners = [
                replace(p, schedule=p.schedule.with_steps(schedules.resolve(p.recipe.schedule, total_steps).steps))
                for p in self.pruners
            ]

    def start(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Scheduler], model: nn.Module) -> None:
        """Take hold of the optimizers: count their steps, keep pruned weights at zero, start the policies.

        Raises:
            ValueError: no optimizer holds any target, or a policy cannot work with these optimizers and schedulers.
            OptimizerStateError: an optimizer whose state cannot be carried over an event.
            PruningError: a target lost its mask, since its module was replaced.
            NonFiniteError: a parameter or buffer is NaN or infinite.
        """
        self.stop()
        with ranks.together("the start of pruning"):
            shards.reshard(model)
            for pruner in self.pruners:
                check_masked(pruner, model)
            check_finite(model)
            masks.check_same(model)
        masks.zero_pruned(model)
        parameters = masks.dense_parameters(model)
        owned = {parameters[name] for pruner in self.pruners for name in pruner.units.weights}
        owners = [o for o in optimizers if owned & set(parameters_of(o))]
        if not owners:
            raise ValueError(
                "no optimizer holds any of the pruned parameters; let configure_optimizers return one that does"
            )
        for pruner in self.pruners:
            runtime = PolicyRuntime(pruner.recipe.optimizer_policy, [parameters[n] for n in pruner.units.shapes])
            self._runtimes.append(runtime)
        for runtime, state in zip(self._runtimes, self._policy_state, strict=False):
            runtime.load_state_dict(state)
        for runtime, pruner in zip(self._runtimes, self.pruners, strict=True):
            first = pruner.schedule.first_step if self.step == 0 else None
            runtime.start(optimizers, schedulers, model, self.step, first)
        masked = set(masks.masks_by_parameter(model))
        for optimizer in (o for o in optimizers if masked & set(parameters_of(o))):
            if any(runtime.moves_zeros(optimizer) for runtime in self._runtimes):
                self._handles.append(optimizer.register_step_post_hook(lambda *_: masks.zero_pruned(model)))
        for optimizer in owners:
            self._handles.append(optimizer.register_step_post_hook(self._count))
        for pruner in self.pruners:
            self._handles.extend(pruner.watch(model))
        self._inputs.listen(model)
        channels = [pruner.units for pruner in self.pruners if isinstance(pruner.units, ChannelUnits)]
        self._copies = Copies(model, channels, self.base, self.step)
        self._copies.load_state_dict(self._seen_copies)
        self._seen_copies = {}  # before another start the model may get other weights
        self._handles.extend(self._copies.watch(model))

    def _is_look_near(self, steps: int) -> bool:
        """Whether an event that looks at samples is due within so many steps; put off ones are."""
        ahead = [
            (pruner.schedule.due(self._looked_at, self.step + steps), pruner.asked)
            for pruner in self.pruners
            if pruner.recipe.samples and not pruner.is_finished
        ]
        return any(sparsity is not None and sparsity > asked for sparsity, asked in ahead)

    def _count(self, *_: object) -> None:
        self.step += 1

    def stop(self) -> None:
        """Let go of the optimizers."""
        self._policy_state = self._policies()
        for runtime in self._runtimes:
            runtime.stop()
        for handle in self._handles:
            handle.remove()
        self._inputs.stop()
        self._runtimes, self._handles = [], []

    def observe(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Show the gradient criteria this step's gradients, before the optimizer steps.

        Changes:
            the gradients of masked weights: zero where they are pruned, whatever else reads the weight.
        """
        masks.zero_gradients(model)
        if self._copies is not None:
            self._copies.observe(model)
        watching = [pruner for pruner in self.pruners if pruner.is_watching]
        if watching:
            held = {id(p) for p in parameters_of(optimizer)}
            parameters = {name: p for name, p in masks.dense_parameters(model).items() if id(p) in held}
            for pruner in watching:
                pruner.observe(parameters)

    def due(self) -> dict[int, float]:
        """Return what the schedules ask for since the last event: index of the recipe -> sparsity; {} when nothing."""
        if self.step in (self._looked_at, self._waits_at):
            return {}
        due = self._due()
        if not due:
            self._looked_at = self.step
        return {
            i: min(due[i], next_stop(p.recipe.need, p.needs, p.asked)) for i, p in enumerate(self.pruners) if i in due
        }

    def _due(self) -> dict[int, float]:
        """Return what the schedules ask for, also beyond the next network."""
        asked = {i: pruner.schedule.due(self._looked_at, self.step) for i, pruner in enumerate(self.pruners)}
        return {i: now for i, now in asked.items() if now is not None and now > self.pruners[i].asked}

    def prune(self, model: nn.Module, asked: Mapping[int, float]) -> list[Event]:
        """Run one event: prune to these sparsities, by index of the recipe; return the records.

        Raises:
            NonFiniteError: a weight or score is NaN or infinite; nothing is pruned then.
        """
        falls_short = any(asked.get(index, 0.0) < sparsity for index, sparsity in self._due().items())
        if not (falls_short and (self.last_step is None or self.step >= self.last_step)):
            self._looked_at = self.step
        for index in asked:
            self._runtimes[index].before_event(self.step, model)
        recipes = [self.pruners[index].recipe for index in asked]
        is_looking, is_asked = any(r.samples for r in recipes), any(isinstance(r.repair, LeastSquares) for r in recipes)
        inputs, unrepaired = self._inputs.last_call(model, self.step, is_asked) if is_looking else (None, "")
        events = []
        # channels first: weights that leave with them count for no other recipe
        for index in sorted(asked, key=lambda index: not self.pruners[index].recipe.is_structured):
            carry = partial(self._runtimes[index].after_event, self.step, model=model)
            events.append(prune_step(self.pruners[index], model, asked[index], carry, self.step, inputs, unrepaired))
        if is_looking:
            self._inputs.after_event()
        self.mask_copies(model)
        self.sparsity = self.measure(model)
        return events

    def leave_out(self) -> None:
        """Count the event that is due as over, without having pruned."""
        self._looked_at = self.step

    def after_step(self, model: nn.Module) -> None:
        """Take the snapshots of policies that are due at this step."""
        for runtime in self._runtimes:
            runtime.after_step(self.step, model)

    def prune_if_due(self, model: nn.Module) -> list[Event]:
        """Run the event that fell due since last asked; return its records."""
        self.after_step(model)
        asked = self.due()
        return self.prune(model, asked) if asked else []

    def next_removal(self, model: nn.Module) -> Compaction | None:
        """Plan to remove the channels that are masked out entirely; None when there are none."""
        return None if self._copies is None else self._copies.next_removal(model, self._stay, self.step)

    def mask_copies(self, model: nn.Module) -> None:
        """Let what is masked out be zero as well in copies that follow a pruned part and that forward does not reach.

        Changes:
            the copies, in place.
        """
        if self._copies is not None:
            self._copies.mask(model, self._stay)

    def cut(self, plan: Compaction, stay: Iterable[str] = ()) -> None:
        """Cut observations and snapshots as a removal of channels has cut the model.

        Args:
            plan: what has gone.
            stay: the channel groups that could not go; they are not tried again.
        """
        self._stay |= set(stay)
        frame = Frame(plan.shapes, plan.keep)
        for pruner in self.pruners:
            pruner.observed.cut(frame.narrow)
        for runtime in self._runtimes:
            runtime.after_removal(frame.narrow)

    def reached(self, model: nn.Module) -> list[float]:
        """Return the sparsity of each recipe, in what it counts."""
        return [describe(pruner, model, self.step).sparsity for pruner in self.pruners]

    def measure(self, model: nn.Module) -> float:
        """Return the sparsity in what the recipe counts; with several recipes the share of masked weights pruned."""
        if len(self.pruners) == 1:
            return describe(self.pruners[0], model, self.step).sparsity
        first = masks.first_names(model)
        live = [mask for name, mask in BoundModel(model, self.base).masks().items() if first[name] == name]
        return 1 - sum(int(mask.sum()) for mask in live) / sum(mask.numel() for mask in live)

    def state_dict(self, model: nn.Module | None = None, with_inputs: bool = True) -> dict[str, Any]:
        """Return counters, observations, policy snapshots, copies and the last inputs: plain values and tensors.

        Args:
            model: whose masks stand in it too, for no state dict of the model has them; None: they are kept elsewhere.
            with_inputs: False: the samples that repair and criteria look at stand in it not.
        """
        held = {} if model is None else {"masks": {name: mask.clone() for name, mask in masks.ours(model).items()}}
        held |= {"inputs": self._inputs.state_dict()} if with_inputs else {}
        return {
            **held,
            "step": self.step,
            "looked_at": self._looked_at,
            "waits_at": self._waits_at,
            "base": None if self.base is None else self.base.to_json(),
            "stay": sorted(self._stay),
            "recipes": [pruner.recipe.describe() for pruner in self.pruners],
            "pruners": [pruner.state_dict() for pruner in self.pruners],
            "policies": self._policies(),
            "copies": self._seen_copies if self._copies is None else self._copies.state_dict(),
        }

    def _policies(self) -> list[Mapping[str, Any]]:
        return [runtime.state_dict() for runtime in self._runtimes] or self._policy_state

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module, other_recipes: bool = False) -> None:
        """Restore what :meth:`state_dict` returned; the model's own state is loaded already.

        Args:
            state: of a run on this model.
            model: masked.
            other_recipes: go on with the recipes of this run where they differ from those of the state: the counters
                stay, what the new schedules ask for by now is due, and state that does not fit is dropped.

        Raises:
            CheckpointError: the state is of other recipes, or of a model with other channel groups.
        """
        if not other_recipes:
            check_same(state["recipes"], [pruner.recipe for pruner in self.pruners])
        if "masks" in state:
            masks.put(model, state["masks"])
            masks.zero_pruned(model)
        self.pruners, kept, is_other = take_up(self.pruners, state, model)
        self.step, self._stay = state["step"], set(state["stay"])
        self._looked_at, self._waits_at = state["looked_at"], state["waits_at"]
        self._policy_state = list(kept)
        if self._copies is not None and self.is_started:
            self._copies.load_state_dict(state.get("copies", {}))
        else:
            self._seen_copies = state.get("copies", {})
        if "inputs" in state:
            self._inputs.load_state_dict(state["inputs"])
        for runtime, saved in zip(self._runtimes, self._policy_state, strict=False):
            runtime.load_state_dict(saved)
        if is_other:
            self.ask_again()
        self.sparsity = self.measure(model)

    def ask_again(self) -> None:
        """Make what the schedules ask for by now due anew, after the next step."""
        self._looked_at, self._waits_at = -1, self.step


def _check_disjoint(recipes: Iterable[Recipe], model: nn.Module) -> None:
    owner: dict[str, int] = {}
    for index, recipe in enumerate(recipes):
        for target in recipe.targets.resolve(model):
            if target.name in owner:
                raise ValueError(
                    f"target {target.name} is given twice, by recipe {owner[target.name]} and recipe {index}; let their"
                    " targets differ with Targets(include=…, exclude=…)"
                )
            owner[target.name] = index


def _introduced(pruners: Sequence[Pruner]) -> list[Pruner]:
    """Return the pruners, those of single weights with the channels that leave their targets.

    Raises:
        ValueError: one recipe removes channels out of n:m blocks, blocks or channels of another one.
    """
    introduced = []
    for pruner in pruners:
        others = [p.units for p in pruners if p is not pruner and isinstance(p.units, ChannelUnits)]
        reaching = tuple(units for units in others if set(units.shapes) & set(pruner.units.shapes))
        if reaching and not pruner.recipe.granularity.is_single:
            shared = min(set(reaching[0].shapes) & set(pruner.units.shapes))
            raise ValueError(
                f"another recipe of this run removes channels out of {shared}, which would cut the units of"
                f" {pruner.recipe.granularity} apart; exclude it from one of them, or prune in two fits, channels first"
            )
        introduced.append(replace(pruner, others=reaching) if reaching or pruner.others else pruner)
    return introduced
