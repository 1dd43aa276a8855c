"""What a snapshot says of each part of a training run, and how the part takes it back."""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from lightning_prune.compaction import Compaction, applied_plan, reshape_like, set_plan
from lightning_prune.distributed.shards import assembled, is_sharded, local
from lightning_prune.errors import SnapshotError
from lightning_prune.guard.snapshots.storage import State, fresh
from lightning_prune.model import masks
from lightning_prune.optimizer.surgery import (
    hyperparameters,
    parameters_of,
    put_back,
    put_back_hyperparameters,
    references,
)


class Stateful(Protocol):
    """What gives its state as plain values and tensors: a scheduler, a gradient scaler, a pruning run."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take the state, whose tensors are on the CPU."""
        ...


class Parts(NamedTuple):
    """What a snapshot is taken of; the model stands among the modules under ``""``."""

    modules: Mapping[str, nn.Module]
    optimizers: Sequence[Optimizer]
    schedulers: Sequence[Stateful]
    others: Mapping[str, Stateful]

    def state(self) -> State:
        """Return everything by reference: to be copied before training goes on."""
        generator, keys, *rest = np.random.get_state()
        return {
            "modules": {name: _module_state(module) for name, module in self.modules.items()},
            "optimizers": [_optimizer_state(optimizer) for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "others": {name: other.state_dict() for name, other in self.others.items()},
            "random": {
                "python": random.getstate(),
                "numpy": [generator, np.asarray(keys).tolist(), *rest],
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }

    def restore(self, state: State) -> bool:
        """Take back what :meth:`state` returned; say whether a shape changed.

        Raises:
            SnapshotError: the state is of other parts; nothing has changed then.

        Changes:
            modules, optimizers, schedulers, other objects and random generators.
        """
        self._check(state)
        reshaped = [restore_module(module, state["modules"][name]) for name, module in self.modules.items()]
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(tree_map(fresh, saved))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            _restore_optimizer(optimizer, saved)
        for name, other in self.others.items():
            other.load_state_dict(tree_map(fresh, state["others"][name]))
        of_random = state["random"]
        version, internal, gauss = of_random["python"]
        random.setstate((version, tuple(internal), gauss))
        generator, keys, *rest = of_random["numpy"]
        np.random.set_state((generator, np.asarray(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(of_random["torch"].clone())
        for device, saved in enumerate(of_random["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved.clone(), device)
        return any(reshaped)

    def _check(self, state: State) -> None:
        counts = {
            "the names of modules": (sorted(state["modules"]), sorted(self.modules)),
            "the names of other objects": (sorted(state["others"]), sorted(self.others)),
            "the number of optimizers": (len(state["optimizers"]), len(self.optimizers)),
            "the number of schedulers": (len(state["schedulers"]), len(self.schedulers)),
        }
        for saved, optimizer in zip(state["optimizers"], self.optimizers, strict=False):
            least, now = saved["parameters"], len(parameters_of(optimizer))
            counts[f"the parameters of {type(optimizer).__name__}"] = (least, now if now < least else least)
        for what, (then, now) in counts.items():
            if then != now:
                raise SnapshotError(f"{what} differ: {then} in the snapshot, {now} now; restore it with the same parts")
        for path, module in self.modules.items():
            named = masks.dense_names(module)
            for name, tensor in state["modules"][path]["tensors"].items():
                if name not in named:
                    raise SnapshotError(
                        f"the snapshot holds {name}, which {type(module).__name__} does not have; restore it to the"
                        " model that it was taken of"
                    )
                if is_sharded(named[name]) and local(named[name]).shape != tensor.shape:
                    raise SnapshotError(
                        f"the shard of {name} has shape {tuple(tensor.shape)} in the snapshot and"
                        f" {tuple(local(named[name]).shape)} here; resume on as many processes as it was taken on"
                    )


def _module_state(module: nn.Module) -> State:
    named = {name: tensor for name, tensor in masks.dense_names(module).items() if not is_lazy(tensor)}
    first, plan = masks.first_names(module), applied_plan(module)
    own = {name: tensor for name, tensor in named.items() if first[name] == name}
    return {
        "tensors": own,
        "shapes": {name: list(tensor.shape) for name, tensor in own.items()},
        "empty": [name for name, buffer in _buffers(module) if buffer is None],
        "masks": {name: masks.mask_of(owner, attr) for name, owner, attr, _ in masks.masked_places(module)},
        "structured": list(masks.structured_names(module)),
        "removed": None if plan is None else plan.to_json(),
        "extra": {
            path: one.get_extra_state()
            for path, one in module.named_modules()
            if type(one).get_extra_state is not nn.Module.get_extra_state
        },
    }


def _buffers(module: nn.Module) -> list[tuple[str, Tensor | None]]:
    return [
        (f"{path}.{name}" if path else name, buffer)
        for path, one in module.named_modules()
        for name, buffer in one._buffers.items()
    ]


def restore_module(module: nn.Module, saved: State) -> bool:
    """Put one module back; return whether a shape changed."""
    module.zero_grad(set_to_none=True)
    reshaped = _take_form(module, saved)
    named = masks.dense_names(module)
    for name, tensor in saved["tensors"].items():
        _overwrite(named[name], tensor)
    for name in saved["empty"]:
        owner, attr = masks.locate(module, name)
        owner._buffers[attr] = None
    for name, owner, attr, hook in masks.masked_places(module):
        _overwrite(masks.mask_of(owner, attr), saved["masks"][name])
        if attr in owner.__dict__:  # as torch's own methods show it
            with torch.enable_grad():
                hook(owner, None)
    for path, extra in saved["extra"].items():
        module.get_submodule(path).set_extra_state(tree_map(fresh, extra))
    return reshaped


def _take_form(module: nn.Module, saved: State) -> bool:
    """Let the module take the masks and shapes of the snapshot; say whether a shape changed."""
    structured = set(saved["structured"])
    before = {name: name in masks.structured_names(module) for name in masks.read(module)}
    wanted = {name: name in structured for name in saved["masks"]}
    masks.detach(module, [name for name, kind in before.items() if wanted.get(name) != kind])
    shapes = {name: torch.Size(shape) for name, shape in saved["shapes"].items()}
    reshaped = any(tensor.shape != shapes.get(n, tensor.shape) for n, tensor in masks.dense_names(module).items())
    plan = None if saved["removed"] is None else Compaction.from_json(saved["removed"])
    if reshaped:
        known = [one for one in (applied_plan(module), plan) if one is not None]
        blank = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        reshape_like(module, blank, {path: follows for one in known for path, follows in one.attributes.items()})
    set_plan(module, plan)
    for kind in (True, False):
        lost = [name for name, wants in wanted.items() if wants == kind and before.get(name) != kind]
        masks.attach(module, lost, is_structured=kind)
    return reshaped


def _has_form(live: Tensor, saved: Tensor) -> bool:
    form = (live.dtype, live.layout, live.shape)
    is_strided = live.layout is torch.strided
    return form == (saved.dtype, saved.layout, saved.shape) and (not is_strided or live.stride() == saved.stride())


def _overwrite(live: Tensor, saved: Tensor) -> None:
    """Give a tensor the saved bits, in place; where another memory format was held, memory of that format."""
    own = local(live)
    if is_sharded(live) or _has_form(own, saved):
        own.copy_(saved)
    else:
        live.data = saved.to(live.device, copy=True)


def _optimizer_state(optimizer: Optimizer) -> State:
    numbers: dict[Any, Any] = {parameter: number for number, parameter in enumerate(parameters_of(optimizer))}
    entries = [
        {
            "of": numbers.get(key, key),
            "values": values,
            "on_cpu": [
                name
                for name, value in values.items()
                if all(leaf.device.type == "cpu" for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
            ],
            "sharded": [name for name, value in values.items() if is_sharded(value)],
        }
        for key, values in references(optimizer).items()
        if key in numbers or isinstance(key, str)
    ]
    return {"parameters": len(numbers), "entries": entries, "groups": hyperparameters(optimizer)}


def _restore_optimizer(optimizer: Optimizer, saved: State) -> None:
    """Put state and hyperparameters back by parameter, in their own types: load_state_dict would cast them."""
    parameters, live = parameters_of(optimizer), cast("dict[Any, Any]", references(optimizer))
    state = {key: values for key, values in live.items() if not (key in set(parameters) or isinstance(key, str))}
    write = _Writer()
    for entry in saved["entries"]:
        key = parameters[entry["of"]] if isinstance(entry["of"], int) else entry["of"]
        owner = key if isinstance(key, Tensor) else parameters[0]
        state[key] = {
            name: write(
                live.get(key, {}).get(name),
                value,
                torch.device("cpu") if name in entry["on_cpu"] else owner.device,
                owner if name in entry["sharded"] else None,
            )
            for name, value in entry["values"].items()
        }
    put_back(optimizer, state)
    put_back_hyperparameters(optimizer, tree_map(fresh, saved["groups"]))


class _Writer:
    """Writes saved values over live ones: in place where form and device are right, otherwise as copies.

    Live tensors that have come to share their memory, and were apart when they were saved, come apart again.
    """

    def __init__(self) -> None:
        self._taken: dict[tuple[int, torch.Size], int] = {}

    def __call__(self, live: object, saved: Any, device: torch.device, like: Tensor | None) -> Any:  # noqa: ANN401
        if not isinstance(saved, Tensor):
            return tree_map(partial(fresh, device=device), saved)
        if isinstance(live, Tensor) and is_sharded(live) == (like is not None):
            own = local(live)
            is_free = self._taken.setdefault((own.data_ptr(), own.shape), saved.data_ptr()) == saved.data_ptr()
            if is_free and own.device == device and _has_form(own, saved):
                own.copy_(saved)
                return live
        copied = fresh(saved, device)
        return copied if like is None else assembled(copied, like)
