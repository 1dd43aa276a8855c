"""The eager side: a folded copy of the model, and the inputs on which file and copy must agree."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from lightning_prune.deploy.program.feeds import Feeding
from lightning_prune.deploy.program.signature import describe, dtype_name, flatten_outputs
from lightning_prune.deploy.program.structure import Arguments, is_record, named_leaves
from lightning_prune.errors import ExportError
from lightning_prune.model.example import Example, Inputs, example_of, walked
from lightning_prune.model.masks import fold
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.model.state import assigned_in_place, kept_state, outside_buffers
from lightning_prune.model.summary import single


class EagerModel(nn.Module):
    """A method of a model as export sees it: positional tensors in, a flat tuple of tensors out.

    Whatever structure its arguments and outputs have is made and taken apart here.

    It is also the root that ExecuTorch needs: its batch-norm fusion fails on a bare ``nn.Sequential``.

    Args:
        model: what :func:`folded_copy` returned.
        method: where the method is: ``forward``, ``embed``, ``encoder.embed``.
        preprocess: applied to the first input; None: nothing is.
        arguments: where the inputs stand among the arguments of the method; None: each is one of them.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str = "forward",
        preprocess: nn.Module | None = None,
        arguments: Arguments | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.preprocess = preprocess
        self.arguments = arguments
        self.state: tuple[str, ...] = ()
        """Names of the buffers that a call changes, as seen when it ran on its example."""
        self.feeding = Feeding()
        """Which outputs are inputs of the next call."""

    @property
    def has_memory(self) -> bool:
        """Whether a call goes on from the one before, by buffers or by what is fed."""
        return bool(self.state or self.feeding.sources)

    def __str__(self) -> str:
        return type(self.model).__name__ + ("" if self.method == "forward" else f".{self.method}")

    @property
    def function(self) -> Callable[..., Any]:
        """The method itself, its structure of outputs as it is."""
        path, _, name = self.method.rpartition(".")
        owner = self.model.get_submodule(path)
        return owner if name == "forward" else getattr(owner, name)

    def of_model(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the tensors that the method is given for inputs of the program."""
        if self.preprocess is None:
            return tuple(inputs)
        return self.preprocess(inputs[0]), *inputs[1:]

    def call(self, inputs: Sequence[Tensor]) -> Example:
        """Return the arguments of the method for inputs of the program."""
        return self.filled(self.of_model(inputs))

    def filled(self, tensors: Sequence[Tensor]) -> Example:
        """Return the arguments of the method with these tensors in them."""
        return Example(tuple(tensors)) if self.arguments is None else self.arguments.filled(tensors)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors in what the method returns."""
        call = self.call(inputs)
        with assigned_in_place(self.model):
            outputs = self.function(*call.args, **call.kwargs)
        return tuple(leaf for _, leaf in named_leaves(outputs))

    def run(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Return the same for inputs that the model may change in place, from its first state, which stays.

        Raises:
            ExportError: the model rejects them.
        """
        try:
            return self.in_step([inputs])[0]
        except Exception as error:
            raise ExportError(
                f"{self} rejects {describe(inputs)}, which the program takes: {error}; give inputs that both take, and"
                " let sizes vary no further than the model can"
            ) from error

    def in_step(
        self,
        steps: Sequence[Sequence[Tensor]],
        *,
        first: Mapping[str, Tensor] | None = None,
        before: Callable[[Sequence[Tensor]], object] = lambda _: None,
        after: Callable[[], object] = lambda: None,
    ) -> list[Sequence[Tensor]]:
        """Return the outputs of calls in a row; the model's buffers are afterwards as they were.

        Args:
            steps: inputs of each call; those that are fed count at the first call alone.
            first: state to begin from; None: what the buffers hold.
            before: done before each call, with its inputs.
            after: done after each call.
        """

        def run(*step: Tensor) -> tuple[Tensor, ...]:
            before([x.clone() for x in step])
            # an output may be a buffer itself, which the next call overwrites
            outputs = tuple(y.clone() for y in self(*(x.clone() for x in step)))
            after()
            return outputs

        with kept_state(self):
            self.set_state(first or {})
            return self.feeding.in_a_row(run, steps)

    def set_state(self, values: Mapping[str, Tensor]) -> None:
        """Let buffers hold these values, in place."""
        for name, value in values.items():
            self.get_buffer(name).copy_(value)


@contextmanager
def isolated() -> Iterator[None]:
    """Leave gradients, autocast and inference mode outside, and the caller's random state as it was."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        yield


def state_of(methods: Mapping[str, EagerModel]) -> list[dict[str, Any]]:
    """Return what methods keep from call to call as plain values: name, shape, dtype, first values, which write it."""
    writers: dict[str, list[str]] = {}
    for method, eager in methods.items():
        for name in eager.state:
            writers.setdefault(name, []).append(method)
    return [
        {
            "name": name.removeprefix("model."),
            "shape": list((first := methods[names[0]].get_buffer(name)).shape),
            "dtype": dtype_name(first.dtype),
            "first": "stored" if bool(first.any()) else "zeros",
            "methods": names,
        }
        for name, names in writers.items()
    ]


def folded_copy(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU in eval mode, masks folded, every tensor contiguous; the model is not touched.

    Tensors that a module keeps as plain attributes, made in its first forward pass and reused since, go there too.

    Raises:
        ExportError: the model cannot be copied, or has parameters without values.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            raise ExportError(f"{name} has no values yet: run the model on one batch or load its weights, then export")
    try:
        copied = plain_copy(model)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} cannot be copied for the export: {error}") from error
    copied = fold(copied).cpu().eval()
    kept = pytree.tree_leaves([list(vars(module).values()) for module in copied.modules()])
    for tensor in (*copied.parameters(), *copied.buffers(), *(value for value in kept if isinstance(value, Tensor))):
        tensor.data = tensor.data.cpu().contiguous()
    return copied


def example_arguments(
    model: nn.Module, example_inputs: Inputs | None, function: Callable[..., Any] | None = None, method: str = "forward"
) -> Arguments:
    """Return the arguments of an example, with tensors of our own: on the CPU, contiguous, without history.

    Args:
        model: whose ``example_input_array`` is taken where ``example_inputs`` is None, or else one sample of what it
            learnt.
        example_inputs: as given by the caller.
        function: the method that they are for; None: the model's ``forward``.
        method: its name, in errors.

    Raises:
        ValueError: there are none.
        TypeError: one is neither a tensor nor a plain value nor a container of them.
        ExportError: the method does not take them.
    """
    example = example_of(model) if example_inputs is None else given_inputs(example_inputs)
    example = None if example is None else single(model, example)
    if example is None or not (example.args or example.kwargs):
        raise ValueError(
            f"{type(model).__name__} has no example_input_array: pass inputs of the shape that the app will use, as in"
            " export(model, 'model.pte', example_inputs=torch.zeros(1, 3, 224, 224))"
        )
    try:
        arguments = Arguments.of(model if function is None else function, example, method)
    except TypeError as error:
        if str(error).startswith("example_inputs"):
            raise
        raise ExportError(
            f"{type(model).__name__} rejects the example inputs {example}: {error}; pass example_inputs= that its"
            f" {method} takes"
        ) from error
    own = walked(arguments.example, lambda x: x.detach().cpu().clone(memory_format=torch.contiguous_format))
    return replace(arguments, example=own)


def example_tensors(model: nn.Module, example_inputs: Inputs | None) -> tuple[Tensor, ...]:
    """Return the example inputs of a ``forward`` that takes one tensor per argument; see :func:`example_arguments`.

    Raises:
        TypeError: it takes anything else.
    """
    arguments = example_arguments(model, example_inputs)
    if any(not isinstance(x, Tensor) for x in arguments.example.args) or arguments.example.kwargs:
        raise TypeError("example_inputs: pass one tensor per positional argument of forward")
    return arguments.tensors


def given_inputs(example_inputs: object, name: str = "example_inputs") -> Example:
    """Return what a caller gave for the arguments of a method; a named tuple or a dataclass is one argument.

    Raises:
        TypeError: it is no tensor, tuple, dict or dataclass.
    """
    if isinstance(example_inputs, Example | Tensor | tuple | list | Mapping) and not hasattr(example_inputs, "_fields"):
        return Example.of(example_inputs)
    if is_record(example_inputs) and not isinstance(example_inputs, type):
        return Example((example_inputs,))
    raise TypeError(
        f"{name}: got a {type(example_inputs).__name__}, must be a tensor, a tuple of positional or a dict of keyword"
        f" arguments, as in {name}=torch.zeros(1, 3, 224, 224)"
    )


def eager_outputs(eager: EagerModel, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Run the copy on the example inputs and return its outputs by name.

    Raises:
        ExportError: it rejects them or changes them in place, remembers a call elsewhere than in its buffers, or an
            output is no tensor.
    """
    given = [x.clone() for x in eager.of_model(inputs)]
    outside, random = outside_buffers(eager.model), torch.get_rng_state()
    versions = [x._version for x in given]
    try:
        call = eager.filled(given)
        with kept_state(eager) as changed:
            outputs = eager.function(*call.args, **call.kwargs)
            eager.state = changed()
    except Exception as error:
        raise ExportError(
            f"{eager} rejects the example inputs {describe(given)}: {error}; pass example_inputs= that its"
            f" {eager.method} takes"
        ) from error
    if eager.preprocess is None and versions != [x._version for x in given]:
        raise ExportError(
            f"{eager} changes its input in place, which a .pte cannot: use the operator without the underscore, or"
            f" begin {eager.method} with x = x.clone()"
        )
    first = {name: y.clone() for name, y in flatten_outputs(outputs).items()}
    torch.set_rng_state(random)
    # once more from the same buffers: what differs now was remembered where neither torch.export nor a .pte sees it
    with kept_state(eager):
        call = eager.filled([x.clone() for x in eager.of_model(inputs)])
        outputs = eager.function(*call.args, **call.kwargs)
    # outputs that are buffers themselves hold their first values again, here as above
    second = flatten_outputs(outputs)
    is_same = first.keys() == second.keys() and all(
        y.shape == second[name].shape and torch.allclose(y, second[name], equal_nan=True) for name, y in first.items()
    )
    if not is_same:
        now = outside_buffers(eager.model)
        written = [
            name
            for name, (x, mark) in now.items()
            if name not in outside or outside[name][0] is not x or outside[name][1] != mark
        ]
        raise ExportError(
            f"{eager} gives something else at a second call with the same inputs and buffers: it remembers the first"
            f" {f'in {written[0]}' if written else 'elsewhere than in a tensor of its own'}. A program keeps only what"
            " is a buffer with a value from the beginning: self.register_buffer('past', torch.zeros(1, 8)), written"
            " with self.past.copy_(…)"
        )
    return first


def random_like(inputs: Sequence[Tensor], seed: int = 0) -> tuple[Tensor, ...]:
    """Return inputs of the same shapes, the same at each call with a seed.

    Floating ones are uniform over the range of the given, or standard normal where that is a single value; bytes are
    uniform over 0 to 255, as in an image; all others are the given.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            return torch.randint(0, 256, x.shape, generator=generator, dtype=torch.uint8)
        if not x.is_floating_point() or x.numel() == 0:
            return x
        low, high = x.double().aminmax()
        if low == high:
            return torch.randn(x.shape, generator=generator).to(x.dtype)
        return (low + (high - low) * torch.rand(x.shape, generator=generator)).to(x.dtype)

    return tuple(drawn(x) for x in inputs)


def is_silent(inputs: Sequence[Tensor]) -> bool:
    """Whether inputs are of one value each, on which many models agree."""
    return all(x.numel() == 0 or bool((x == x.flatten()[0]).all()) for x in inputs)
