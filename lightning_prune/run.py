"""One pruning run on one model: its pruners, policies and step counter, and the state that a resume needs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune import masks, schedules
from lightning_prune.binding import bind
from lightning_prune.errors import CheckpointError, NonFiniteError
from lightning_prune.granularity import Element
from lightning_prune.optimizer_surgery import parameters_of
from lightning_prune.policies import LRRewind, RewindWeights, as_policies
from lightning_prune.policy_runtime import PolicyRuntime, Scheduler
from lightning_prune.pruner import Event, Pruner, check_masked, describe, prune_step
from lightning_prune.recipe import Recipe
from lightning_prune.selection import ChannelUnits


class PruningRun:
    """Prunes one model by one or several recipes while optimizers step; knows nothing of Lightning.

    Args:
        recipes: with different targets.
        model: gets all-True masks; nothing else holds it.
        example_inputs: positional arguments of its forward, where a recipe needs them.
        total_steps: optimizer steps of the run; None when unknown.

    Raises:
        ValueError: a recipe does not fit the model, or two recipes share a target.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        model: nn.Module,
        example_inputs: tuple[Any, ...] | None,
        total_steps: int | None,
    ) -> None:
        _check_disjoint(recipes, model)
        self._total_steps = total_steps
        self.pruners: list[Pruner] = [bind(recipe, model, example_inputs, total_steps) for recipe in recipes]
        _introduce(self.pruners)
        self.step = 0
        self.sparsity = 0.0
        self._looked_at = -1
        self._runtimes: list[PolicyRuntime] = []
        self._policy_state: list[dict[str, Any]] = []
        self._handles: list[RemovableHandle] = []
        self.attach(model)

    @property
    def last_step(self) -> int | None:
        """The step of the last event of all recipes; None when a schedule does not tell."""
        steps = [schedules.final_step(pruner.schedule) for pruner in self.pruners]
        known = [step for step in steps if step is not None]
        return max(known) if len(known) == len(steps) else None

    @property
    def unfinished(self) -> list[Pruner]:
        """The pruners that have not asked for their final sparsity yet."""
        return [pruner for pruner in self.pruners if not pruner.is_finished]

    def attach(self, model: nn.Module) -> None:
        """Put masks on whatever the recipes mask and has none yet."""
        for pruner in self.pruners:
            pruner.attach(model)

    def rebind(self, model: nn.Module, example_inputs: tuple[Any, ...] | None) -> None:
        """Look at the model anew when its shapes have changed, as by a checkpoint of a smaller one."""
        parameters = masks.dense_parameters(model)
        for index, pruner in enumerate(self.pruners):
            shapes = {name: tuple(parameters[name].shape) for name in pruner.units.shapes if name in parameters}
            if shapes != pruner.units.shapes:
                fresh = bind(pruner.recipe, model, example_inputs, self._total_steps)
                self.pruners[index] = replace(fresh, observed=pruner.observed, asked=pruner.asked)
        _introduce(self.pruners)

    def start(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Scheduler], model: nn.Module) -> None:
        """Take hold of the optimizers: count their steps, keep pruned weights at zero, start the policies.

        Raises:
            ValueError: no optimizer holds any target, or a policy cannot work with these optimizers and schedulers.
            OptimizerStateError: an optimizer whose state cannot be carried over an event.
            PruningError: a target lost its mask, since its module was replaced.
            NonFiniteError: a parameter or buffer is NaN or infinite.
        """
        self.stop()
        for pruner in self.pruners:
            check_masked(pruner, model)
        _check_finite(model)
        masks.refresh(model)
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
            first = schedules.first_step(pruner.schedule) if self.step == 0 else None
            runtime.start(optimizers, schedulers, model, self.step, first)
        masked = set(masks.masks_by_parameter(model))
        for optimizer in (o for o in optimizers if masked & set(parameters_of(o))):
            if any(runtime.moves_zeros(optimizer) for runtime in self._runtimes):
                self._handles.append(optimizer.register_step_post_hook(lambda *_: masks.zero_pruned(model)))
        for optimizer in owners:
            self._handles.append(optimizer.register_step_post_hook(self._count))

    def _count(self, *_: object) -> None:
        self.step += 1

    def stop(self) -> None:
        """Let go of the optimizers."""
        self._policy_state = [runtime.state_dict() for runtime in self._runtimes] or self._policy_state
        for runtime in self._runtimes:
            runtime.stop()
        for handle in self._handles:
            handle.remove()
        self._runtimes, self._handles = [], []

    def observe(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Show the gradient criteria this step's gradients, before the optimizer steps."""
        watching = [pruner for pruner in self.pruners if pruner.is_watching]
        if watching:
            held = {id(p) for p in parameters_of(optimizer)}
            parameters = {name: p for name, p in masks.dense_parameters(model).items() if id(p) in held}
            for pruner in watching:
                pruner.observe(parameters)

    def prune_if_due(self, model: nn.Module) -> list[Event]:
        """Run the events that fell due since last asked; return their records.

        Raises:
            NonFiniteError: a weight or score is NaN or infinite; nothing is pruned then.
        """
        if self.step == self._looked_at:
            return []
        before, self._looked_at = self._looked_at, self.step
        events = []
        for runtime in self._runtimes:
            runtime.after_step(self.step, model)
        # channels first: weights that leave with them count for no other recipe
        pairs = zip(self.pruners, self._runtimes, strict=True)
        for pruner, runtime in sorted(pairs, key=lambda pair: not pair[0].recipe.is_structured):
            asked = schedules.due(pruner.schedule, before, self.step)
            if asked is not None and asked > pruner.asked:
                runtime.check_event(self.step)
                carry = partial(self._carry, runtime, model)
                events.append(prune_step(pruner, model, asked, carry, self.step))
        if events:
            self.sparsity = self.measure(model)
        return events

    def _carry(self, runtime: PolicyRuntime, model: nn.Module, live: Mapping[nn.Parameter, Any]) -> None:
        runtime.after_event(self.step, live, model)

    def measure(self, model: nn.Module) -> float:
        """Return the sparsity in what the recipe counts; with several recipes the share of masked weights pruned."""
        if len(self.pruners) == 1:
            return describe(self.pruners[0], model, self.step).sparsity
        live = masks.masks_by_parameter(model).values()
        return 1 - sum(int(mask.sum()) for mask in live) / sum(mask.numel() for mask in live)

    def state_dict(self) -> dict[str, Any]:
        """Return counters, observations and policy snapshots: plain values and tensors."""
        pruners = [{"asked": p.asked, "sums": p.observed.sums, "steps": p.observed.steps} for p in self.pruners]
        policies = [runtime.state_dict() for runtime in self._runtimes] or self._policy_state
        return {"step": self.step, "looked_at": self._looked_at, "pruners": pruners, "policies": policies}

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Restore what :meth:`state_dict` returned; the model's own state is loaded already.

        Raises:
            CheckpointError: the state is of another number of recipes.
        """
        if len(state["pruners"]) != len(self.pruners):
            raise CheckpointError(
                f"the checkpoint was written with {len(state['pruners'])} recipes, this run has {len(self.pruners)};"
                " resume with the same recipes"
            )
        parameters = masks.dense_parameters(model)
        for pruner, saved in zip(self.pruners, state["pruners"], strict=True):
            pruner.asked = saved["asked"]
            pruner.observed.sums = {n: s.to(parameters[n].device, copy=True) for n, s in saved["sums"].items()}
            pruner.observed.steps = dict(saved["steps"])
        self.step, self._looked_at = state["step"], state["looked_at"]
        self._policy_state = list(state["policies"])
        for runtime, saved in zip(self._runtimes, self._policy_state, strict=False):
            runtime.load_state_dict(saved)
        self.sparsity = self.measure(model)


def rehearsal(recipe: Recipe) -> Recipe:
    """Return the recipe as one event at its final sparsity after the first step: what ``fast_dev_run`` shows."""
    final = schedules.final_sparsity(recipe.schedule)
    rewound = (LRRewind, RewindWeights)
    policies = tuple(replace(p, step=0) if isinstance(p, rewound) else p for p in as_policies(recipe.optimizer_policy))
    return replace(recipe, schedule=schedules.OneShot(final, begin_step=1), optimizer_policy=policies)


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


def _introduce(pruners: Sequence[Pruner]) -> None:
    """Tell each pruner of single weights which channels leave its targets; refuse where units could be cut apart.

    Raises:
        ValueError: one recipe removes channels out of n:m blocks, blocks or channels of another one.
    """
    for one in pruners:
        others = [p.units for p in pruners if p is not one and isinstance(p.units, ChannelUnits)]
        reaching = tuple(units for units in others if set(units.shapes) & set(one.units.shapes))
        if reaching and not isinstance(one.recipe.granularity, Element):
            shared = min(set(reaching[0].shapes) & set(one.units.shapes))
            raise ValueError(
                f"another recipe of this run removes channels out of {shared}, which would cut the units of"
                f" {one.recipe.granularity} apart; exclude it from one of them, or prune in two fits, channels first"
            )
        one.others = reaching


def _check_finite(model: nn.Module) -> None:
    broken = [
        name
        for name, tensor in masks.dense_names(model).items()
        if tensor.is_floating_point() and not is_lazy(tensor) and not bool(torch.isfinite(tensor.detach()).all())
    ]
    if broken:
        raise NonFiniteError(
            f"{', '.join(broken[:5])} of {type(model).__name__} is NaN or infinite before the first step; nothing was"
            " pruned. Load other weights, or mend the initialisation"
        )
