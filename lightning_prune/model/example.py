"""An example of what a model's forward takes: from its user, from the model itself, or from its first forward pass."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from lightning_prune.model.masks import dense_names

_HELD_AS = "_pruning_example"
"""Attribute of a model that keeps the arguments of its first forward pass under pruning."""

ROWS = 2
"""Samples of a learnt example that are kept: the size of a batch of one may be taken for a constant by torch.export.

What is told of the model and written for a phone is of one: see :func:`~lightning_prune.model.summary.single`.
"""


TARGETS = ("target", "targets", "label", "labels", "y")
"""Keys of a batch that holds its targets among other entries."""


@dataclass(frozen=True)
class Example:
    """Arguments of a forward pass.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        is_learnt: whether nobody gave it: it was taken from the first forward pass of a fit, or from data.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    is_learnt: bool = False

    @classmethod
    def of(cls, inputs: "Inputs") -> "Example":
        """Return what a user has given: a tensor, a tuple of positional or a dict of keyword arguments.

        Raises:
            TypeError: it is something else.
        """
        if isinstance(inputs, Example):
            return inputs
        if isinstance(inputs, Tensor):
            return cls((inputs,))
        if isinstance(inputs, Mapping):
            return cls((), dict(inputs))
        if isinstance(inputs, tuple | list):
            return cls(tuple(inputs))
        raise TypeError(
            "example inputs are a tensor, a tuple of positional arguments or a dict of keyword arguments, got"
            f" {type(inputs)}"
        )

    def __call__(self, model: nn.Module) -> Any:  # noqa: ANN401
        """Return what the model gives for it."""
        return model(*self.args, **self.kwargs)

    def on_device_of(self, model: nn.Module) -> "Example":
        """Return the same on the device of the model's first parameter, floating tensors in its dtype."""
        first = next((t for t in dense_names(model).values() if t.is_floating_point()), None)
        if first is None:
            return self
        moved = walked(self, lambda x: x.to(first.device, first.dtype if x.is_floating_point() else x.dtype))
        return cast(Example, moved)

    def positional(self, model: nn.Module) -> tuple[Any, ...]:
        """Return all of them in the order in which the model's forward takes them.

        Raises:
            TypeError: forward takes one of them by keyword alone, or does not take it.
        """
        if not self.kwargs:
            return self.args
        bound = inspect.signature(model.forward).bind(*self.args, **self.kwargs)
        if bound.kwargs:
            raise TypeError(
                f"forward of {type(model).__name__} takes {', '.join(bound.kwargs)} by keyword alone, and a program"
                " takes its inputs by position"
            )
        return bound.args

    def __str__(self) -> str:
        shown = [_shape(value) for value in self.args]
        return ", ".join([*shown, *(f"{name}={_shape(value)}" for name, value in self.kwargs.items())])


Inputs: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any] | Example


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"{value!r:.80}"


def example_of(model: nn.Module) -> Example | None:
    """Return the model's own example: its ``example_input_array`` (Lightning's convention), or its first forward pass.

    A dict is keyword arguments, as Lightning has it.
    """
    own = getattr(model, "example_input_array", None)
    return model.__dict__.get(_HELD_AS) if own is None else Example.of(own)


def walked(value: Any, change: Callable[[Tensor], Any]) -> Any:  # noqa: ANN401
    """Return a copy of a structure with every tensor in it changed; containers and dataclasses keep their class."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):  # before dataclasses: the outputs of transformers are both
        copied = copy.copy(cast(dict[Any, Any], value))
        for key in value:
            copied[key] = walked(value[key], change)
        return copied
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for f in dataclasses.fields(value):
            # a frozen one is as open to this as any other
            object.__setattr__(copied, f.name, walked(getattr(value, f.name), change))
        return copied
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(walked(v, change) for v in value))
    if isinstance(value, tuple | list):
        return type(value)([walked(v, change) for v in value])
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """Yield the tensors in nested containers and dataclasses, in order."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors_in(list(leaf.values()))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensors_in([getattr(leaf, f.name) for f in dataclasses.fields(leaf)])


def first_samples(example: Example, rows: int = ROWS) -> Example:
    """Return a detached copy of at most so many samples; all of them where the tensors' first axes differ in length."""
    sizes = set[int]()
    walked(example, lambda x: sizes.add(len(x)) if x.dim() else None)
    is_batch = len(sizes) == 1 and min(sizes) > rows
    return cast(Example, walked(example, lambda x: (x[:rows] if is_batch and x.dim() else x).detach().clone()))


def learnt(example: Example) -> Example:
    """Return what is kept of the arguments of a forward pass as the example of a model that has none."""
    return replace(first_samples(example), is_learnt=True)


def renaming(held: Sequence[str], wanted: Sequence[str]) -> str:
    """Return the line that gives dict batches the names that are wanted, or "" where they hold too little.

    Which entry is meant is a guess: what is named alike stays, the others follow in order, and targets come last.
    """
    free = sorted((key for key in held if key not in wanted), key=lambda key: key in TARGETS)
    missing = [name for name in wanted if name not in held]
    if len(free) < len(missing):
        return ""
    named = dict(zip(missing, free, strict=False))
    pairs = {name: named.get(name, name) for name in wanted} | {key: key for key in free[len(missing) :]}
    entries = ", ".join(f'"{name}": batch["{key}"]' for name, key in pairs.items())
    return f"[{{{entries}}} for batch in loader]"


def sample_count(value: object) -> int:
    """Return the length of the first axis of the first tensor in it; 1 where there is none."""
    first = next((tensor for tensor in tensors_in(value) if tensor.dim()), None)
    return 1 if first is None else max(1, len(first))


def stored(model: nn.Module) -> dict[str, Any] | None:
    """Return the example of the model's first forward pass as values that ``torch.load(weights_only=True)`` reads.

    None where there is none, or where it holds objects of other classes than tensors, numbers, texts and containers.
    """
    example = model.__dict__.get(_HELD_AS)
    if not isinstance(example, Example) or (plain := as_plain(example)) is None:
        return None
    return plain | {"is_learnt": example.is_learnt}


def as_plain(example: Example) -> dict[str, Any] | None:
    """Return the arguments as values that ``torch.load(weights_only=True)`` reads; None where they are no such."""
    plain = {"args": example.args, "kwargs": dict(example.kwargs)}
    return plain if is_plain(tuple(plain.values())) else None


def is_plain(value: object) -> bool:
    """Say whether ``torch.load(weights_only=True)`` reads it: tensors, numbers, texts and containers of them."""
    if type(value) in (tuple, list):
        return all(map(is_plain, cast(list[Any], value)))
    if type(value) is dict:
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return value is None or type(value) in (Tensor, int, float, bool, str)


def remember(model: nn.Module, example: Example) -> None:
    """Let a model without an example of its own have this one."""
    model.__dict__[_HELD_AS] = example


def whole_networks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the children that hold every trained parameter of a model, by name: it may be called in its place."""
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    children = model.named_children() if trained else ()
    return {name: child for name, child in children if trained.issubset(map(id, child.parameters()))}


class FirstForward:
    """Waits for the first forward pass of a model, or of the network inside that its forward merely calls.

    Where a training step computes the loss by a method of that network, nobody calls the model's own forward.

    Args:
        model: whose example is looked for, and which remembers it.
        then: called with the example before the forward pass goes on.
    """

    def __init__(self, model: nn.Module, then: Callable[[Example], None]) -> None:
        self._model, self._then = model, then
        self._standing = [Standing(model, self._arrive)]
        for child in whole_networks(model).values():
            self._standing.append(Standing(child, partial(self._arrive_inside, child)))

    def remove(self) -> None:
        """Put the modules' own forward back."""
        for standing in self._standing:
            standing.remove()

    def _arrive(self, example: Example) -> None:
        self.remove()
        device = next((tensor.device.type for tensor in tensors_in((example.args, dict(example.kwargs)))), "cpu")
        # a validation runs in inference mode and a training step under autocast: what is bound now outlives both
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            example = learnt(example)
            remember(self._model, example)
            self._then(example)

    def _arrive_inside(self, child: nn.Module, example: Example) -> None:
        self.remove()
        if _computes_as(self._model, child, first_samples(example)):
            self._arrive(example)
        else:
            self._standing = [Standing(self._model, self._arrive)]


def _computes_as(model: nn.Module, child: nn.Module, example: Example) -> bool:
    """Whether a model takes what its child takes and gives what it gives, in eval mode."""
    modes = {module: module.training for module in model.modules()}
    results: list[list[Tensor]] = []
    try:
        for module in (model.eval(), child):
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)
                results.append(list(tensors_in(example(module))))
    except Exception:
        return False  # it takes something else, or has no forward
    finally:
        for module, mode in modes.items():
            module.training = mode
    own, inner = results
    return len(own) == len(inner) and all(torch.equal(x, y) for x, y in zip(own, inner, strict=True))


class Standing:
    """Stands where a module's ``forward`` stands and shows its arguments, until it is removed.

    A hook would miss ``self.forward(x)``, and under DDP catch the arguments of ``training_step``.

    Args:
        module: whose arguments are looked for.
        then: called with the arguments before the forward pass goes on; it may remove this.
    """

    def __init__(self, module: nn.Module, then: Callable[[Example], None]) -> None:
        self._module = module
        self._then: Callable[[Example], None] | None = then
        self._own = vars(module).get("forward")
        vars(module)["forward"] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        # a copy of the model, such as a moving average, has its plain forward
        module = copy.deepcopy(self._module, memo)
        return type(module).forward.__get__(module) if self._own is None else copy.deepcopy(self._own, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._module, "forward")

    def remove(self) -> None:
        """Put the module's own forward back; where somebody else has come to stand before it, show nothing more."""
        self._then = None
        if vars(self._module).get("forward") is self:
            if self._own is None:
                del vars(self._module)["forward"]
            else:
                vars(self._module)["forward"] = self._own

    def _forward(self) -> Callable[..., Any]:
        return self._own or type(self._module).forward.__get__(self._module)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the module's own forward."""
        return inspect.signature(self._forward())

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Take the arguments down, then run the module's own forward."""
        before = vars(self._module).get("forward")
        if self._then is not None:
            self._then(Example(args, kwargs))
        # whoever was called may have put something else in this place
        is_as_before = vars(self._module).get("forward") is before
        return (self._forward() if is_as_before else self._module.forward)(*args, **kwargs)
