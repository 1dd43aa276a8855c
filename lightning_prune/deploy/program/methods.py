"""What is exported: methods of a model, each with its example inputs, as values."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lightning_prune.deploy.program.dynamic import Sizes, checked_shapes, traceable
from lightning_prune.deploy.program.eager import EagerModel, eager_outputs, example_arguments
from lightning_prune.deploy.program.feeds import Feeding, Feeds, checked_feeds
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.signature import MethodSpec, describe, specs
from lightning_prune.deploy.quantization.calibrated import check_loader
from lightning_prune.errors import ExportError
from lightning_prune.model.example import Inputs


@dataclass(frozen=True)
class Method:
    """A further method of a program, beside ``forward``.

    Args:
        function: a method of the model or of a module in it, as in ``model.embed``; its name as in ``"embed"`` or
            ``"encoder.embed"``; or a module in the model, whose ``forward`` is meant.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; None: the model's
            ``example_input_array``, and to :func:`verify` those of ``forward`` or random ones.
        dynamic_shapes: as in torch.export; None: every shape is that of the example.
        preprocess: folded in before its first input; None: none.
        calibration: samples of its inputs, where the backend quantizes: batches as in
            :class:`~lightning_prune.deploy.Int8`. None: those of the quantization, if it takes the inputs of
            ``forward``.
        feeds: which outputs are inputs of the next call, as to :func:`export`.
    """

    function: str | Callable[..., Any]
    example_inputs: Inputs | None = None
    dynamic_shapes: Any = None
    preprocess: Normalize | None = None
    calibration: Iterable[Any] | None = None
    feeds: Feeds | None = None

    def __post_init__(self) -> None:
        if self.preprocess is not None and not isinstance(self.preprocess, Normalize):
            raise TypeError(f"preprocess: got a {type(self.preprocess).__name__}, must be Normalize(mean=[…], std=[…])")


@dataclass(frozen=True)
class EntryPoint:
    """A method on the eager side, ready to be traced.

    Args:
        name: of the method in the program.
        eager: tensors in, a flat tuple of tensors out.
        inputs: examples; those that the program is traced on.
        shapes: what may vary, by input; None: nothing.
        spec: inputs and outputs on the examples, without ranges.
        preprocess: that is folded in.
        calibration: samples of its own; None: those of ``forward``.
    """

    name: str
    eager: EagerModel
    inputs: tuple[Tensor, ...]
    shapes: tuple[Sizes, ...] | None
    spec: MethodSpec
    preprocess: Normalize | None = None
    calibration: Iterable[Any] | None = None

    @property
    def names(self) -> list[str]:
        """Names of its inputs."""
        return [one.name for one in self.spec.inputs]


def check_methods(methods: Mapping[str, Method] | None) -> None:
    """Check further methods of a program.

    Raises:
        TypeError: they are no dict, or have an entry for ``forward``.
    """
    if methods is not None and not isinstance(methods, Mapping):
        raise TypeError(
            f"methods: got a {type(methods).__name__}, must be a dict, as in {{'embed': Method(model.embed, x)}}"
        )
    if methods is not None and "forward" in methods:
        raise TypeError("methods: forward is the model's own and may not be among the further methods: leave it out")


def entry_points(model: nn.Module, copied: nn.Module, methods: Mapping[str, Method]) -> tuple[EntryPoint, ...]:
    """Return the methods of a folded copy, after each was run on its example inputs.

    Args:
        model: as given by the caller.
        copied: what :func:`~lightning_prune.deploy.program.eager.folded_copy` returned for it.
        methods: by name, ``forward`` first.

    Raises:
        ValueError: a name, an input or a dynamic dimension does not fit.
        TypeError: an argument is of another type.
        ExportError: a method rejects its inputs, or gives something else than tensors.
    """
    for name, method in methods.items():
        if not isinstance(method, Method):
            raise TypeError(
                f"methods[{name!r}] is a {type(method).__name__}, must be a Method, as in Method(model.embed,"
                " example_inputs=x)"
            )
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"methods: got the name {name!r}, must be an identifier such as 'embed'")
    entries = []
    for name, method in methods.items():
        path = _path(model, name, method.function)
        check_loader(f"methods[{name!r}].calibration", method.calibration)
        function = EagerModel(copied, path).function
        arguments = example_arguments(model, method.example_inputs, function, name)
        inputs, names = arguments.tensors, arguments.names
        preprocess = None if method.preprocess is None else method.preprocess.module()
        eager = EagerModel(copied, path, preprocess, arguments)
        if method.preprocess is not None:
            inputs = (method.preprocess.image_like(inputs[0]), *inputs[1:])
        shapes = checked_shapes(method.dynamic_shapes, names, inputs)
        outputs = eager_outputs(eager, inputs)
        spec = MethodSpec(specs(names, inputs), specs(list(outputs), list(outputs.values())))
        spec = replace(spec, feeds=checked_feeds(method.feeds, spec, inputs))
        eager.feeding = Feeding.of(spec)
        grown = traceable(inputs, shapes)
        if describe(grown) != describe(inputs):
            try:
                eager.run(*grown)
            except Exception as error:
                raise ExportError(
                    f"dynamic_shapes: {eager} takes {describe(inputs)} and rejects {describe(grown)} ({error}): leave"
                    " the dimension that cannot vary out of dynamic_shapes"
                ) from error
        entries.append(EntryPoint(name, eager, grown, shapes, spec, method.preprocess, method.calibration))
    return tuple(entries)


def _path(model: nn.Module, name: str, function: object) -> str:
    """Return where the function is in the model: ``embed``, ``encoder.embed``, ``encoder.forward``."""
    if isinstance(function, str):
        if not has_method(model, function):
            raise ValueError(f"methods[{name!r}]: {type(model).__name__} has no method {function!r}")
        is_module = function in dict(model.named_modules())
        return f"{function}.forward" if is_module else function
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    attribute = "forward" if isinstance(function, nn.Module) else getattr(function, "__name__", "")
    for path, module in model.named_modules():
        if module is owner:
            return f"{path}.{attribute}" if path else attribute
    shown = getattr(function, "__name__", f"a {type(function).__name__}")
    if isinstance(owner, nn.Module) and hasattr(function, "__name__"):
        shown = f"{type(owner).__name__}.{shown}"
    raise TypeError(
        f"methods[{name!r}]: {shown} is no method of the model or of a module in it: pass a bound method"
        " such as model.embed, or its name"
    )


def has_method(model: nn.Module, function: str) -> bool:
    """Whether a name such as ``embed`` or ``encoder.embed`` is that of a method or a module in the model."""
    path, _, attribute = function.rpartition(".")
    return callable(getattr(dict(model.named_modules()).get(path), attribute, None))
