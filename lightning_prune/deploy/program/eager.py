"""The eager side: a folded copy of the model, and the inputs on which file and copy must agree."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from lightning_prune.deploy.program.signature import describe, flatten_outputs
from lightning_prune.errors import ExportError
from lightning_prune.model.copies import plain_copy
from lightning_prune.model.example import example_of
from lightning_prune.model.masks import fold


class EagerModel(nn.Module):
    """A method of a model as export sees it: positional tensors in, a flat tuple of tensors out.

    It is also the root that ExecuTorch needs: its batch-norm fusion fails on a bare ``nn.Sequential``.

    Args:
        model: what :func:`folded_copy` returned.
        method: where the method is: ``forward``, ``embed``, ``encoder.embed``.
        preprocess: applied to the first input; None: nothing is.
    """

    def __init__(self, model: nn.Module, method: str = "forward", preprocess: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.preprocess = preprocess

    def __str__(self) -> str:
        return type(self.model).__name__ + ("" if self.method == "forward" else f".{self.method}")

    @property
    def function(self) -> Callable[..., Any]:
        """The method itself, its structure of outputs as it is."""
        path, _, name = self.method.rpartition(".")
        owner = self.model.get_submodule(path)
        return owner if name == "forward" else getattr(owner, name)

    def of_model(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what the method is given for inputs of the program."""
        if self.preprocess is None:
            return tuple(inputs)
        return self.preprocess(inputs[0]), *inputs[1:]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors in what the method returns."""
        return tuple(pytree.tree_leaves(self.function(*self.of_model(inputs))))

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the same for inputs that the model may change in place.

        Raises:
            ExportError: the model rejects them.
        """
        try:
            return self(*(x.clone() for x in inputs))
        except Exception as error:
            raise ExportError(
                f"{self} rejects {describe(inputs)}, which the program takes: {error}; give inputs that both take, and"
                " let sizes vary no further than the model can"
            ) from error


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


def folded_copy(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU in eval mode, masks folded, every tensor contiguous; the model is not touched.

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
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.data.contiguous()
    return copied


def example_tensors(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor] | None, method: str = "forward"
) -> tuple[Tensor, ...]:
    """Return the example inputs as tensors of our own: on the CPU, contiguous, without history.

    Args:
        model: whose ``example_input_array`` is taken where ``example_inputs`` is None.
        example_inputs: as given by the caller.
        method: that they are for, in errors.

    Raises:
        ValueError: there are none.
        TypeError: one is no tensor.
    """
    own = example_of(model)
    inputs = given_inputs(example_inputs) if example_inputs is not None else own and own.positional(model)
    if not inputs:
        raise ValueError(
            f"{type(model).__name__} has no example_input_array: pass inputs of the shape that the app will use, as in"
            " export(model, 'model.pte', example_inputs=torch.zeros(1, 3, 224, 224))"
        )
    for index, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"example_inputs[{index}] is a {type(value).__name__}: pass one tensor per positional argument of"
                f" {method}, and wrap a model that takes anything else"
            )
    return tuple(x.detach().cpu().clone(memory_format=torch.contiguous_format) for x in inputs)


def given_inputs(example_inputs: object, name: str = "example_inputs") -> tuple[Any, ...]:
    """Return what a caller gave for positional arguments as a tuple.

    Raises:
        TypeError: it is neither a tensor nor a tuple or list.
    """
    if not isinstance(example_inputs, Tensor | tuple | list):
        raise TypeError(
            f"{name}: got a {type(example_inputs).__name__}, must be a tensor or a tuple of tensors, one per positional"
            f" argument, as in {name}=torch.zeros(1, 3, 224, 224)"
        )
    return (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)


def eager_outputs(eager: EagerModel, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Run the copy on the example inputs and return its outputs by name.

    Raises:
        ExportError: it rejects them or changes them in place, or an output is no tensor.
    """
    given = [x.clone() for x in eager.of_model(inputs)]
    versions = [x._version for x in given]
    try:
        outputs = eager.function(*given)
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
    return flatten_outputs(outputs)


def random_like(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return inputs of the same shapes, the same at each call.

    Floating ones are uniform over the range of the given, or standard normal where that is a single value; bytes are
    uniform over 0 to 255, as in an image; all others are the given.
    """
    generator = torch.Generator().manual_seed(0)

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
