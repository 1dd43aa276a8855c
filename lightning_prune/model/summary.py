"""Sparsity, parameters, multiply-accumulates and bytes as values; printing is the caller's."""

import math
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.model._counting import Products, counted
from lightning_prune.model.example import Example, Inputs, example_of, first_samples
from lightning_prune.model.masks import dense_names, dense_parameters, first_names
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.model.state import State, kept_state, state_in
from lightning_prune.tables import Table, Tabular

PLAN = "_compaction"
"""The plain attribute by which a module holds what compaction has removed; its ``shapes`` are those from before."""


@dataclass(frozen=True)
class LayerSummary:
    """One layer that holds parameters or buffers of its own; a shared one counts where it stands first.

    Args:
        name: module path.
        kind: class of the module.
        shape: shape of its weight (out, in, *kernel), or of its first parameter.
        parameters: elements of its own parameters.
        zeros: how many of them are zero.
        macs: multiply-accumulates of one forward pass of the example input in the shapes of now, zeros counted; of a
            shared weight those of all layers that use it; None when not measured.
        effective_macs: of those, the ones with a weight that is not zero.
        bytes: of its parameters and buffers.
        parameters_before: elements of its parameters before channels were removed; None: none were.
        blank: of the zeros, those of vectors that are all zero, as biases are made: no event takes a whole one.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    zeros: int
    macs: int | None
    effective_macs: int | None
    bytes: int
    parameters_before: int | None = None
    blank: int = 0

    @property
    def sparsity(self) -> float:
        """Share of zeros among the parameters."""
        return self.zeros / self.parameters if self.parameters else 0.0

    @property
    def left(self) -> float:
        """Share of the parameters of the dense layer that are there and not zero; blank ones count as not zero."""
        return _left(self)


@dataclass(frozen=True)
class Summary(Tabular):
    """A model by layers and in all; printed, and shown in a notebook, it is a table.

    Args:
        layers: one entry per module with parameters or buffers of its own, in module order.
        macs: multiply-accumulates of the whole network for one example input; None when there was none.
        state: buffers that its forward changes, as seen on that input.
    """

    layers: tuple[LayerSummary, ...]
    macs: int | None
    state: tuple[State, ...] = ()

    @property
    def parameters(self) -> int:
        """Elements of all parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Zeros among them."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of zeros among all parameters."""
        return self.zeros / self.parameters if self.parameters else 0.0

    @property
    def parameters_before(self) -> int:
        """Elements of all parameters before channels were removed."""
        return sum(_before(layer) for layer in self.layers)

    @property
    def blank(self) -> int:
        """Zeros of vectors that are all zero."""
        return sum(layer.blank for layer in self.layers)

    @property
    def left(self) -> float:
        """Share of the parameters of the dense model that are there and not zero; blank ones count as not zero."""
        return _left(self)

    @property
    def effective_macs(self) -> int | None:
        """Multiply-accumulates with a weight that is not zero."""
        if self.macs is None:
            return None
        return self.macs - sum((layer.macs or 0) - (layer.effective_macs or 0) for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Size of parameters and buffers in memory."""
        return sum(layer.bytes for layer in self.layers)

    def table(self) -> Table:
        """Return a row for each layer and one for all of them."""
        head = ("layer", "type", "shape", "parameters", "left", "MACs", "bytes")
        rows = [
            (layer.name or "(root)", layer.kind, "x".join(map(str, layer.shape)), *_figures(layer))
            for layer in self.layers
        ]
        notes = ["left: not zero, of the parameters before pruning"] if self.left < 1 else []
        note = "\n".join(notes + [f"state: {each}" for each in self.state])
        return Table(head, (*rows, ("in all", "", "", *_figures(self))), words=3, has_total=True, note=note)


def _figures(row: LayerSummary | Summary) -> tuple[str, str, str, str]:
    macs = "-" if row.macs is None else f"{row.macs:,}"
    return f"{row.parameters:,}", f"{row.left:.1%}", macs, f"{row.bytes:,}"


def _before(row: LayerSummary | Summary) -> int:
    return row.parameters if row.parameters_before is None else row.parameters_before


def _left(row: LayerSummary | Summary) -> float:
    return (row.parameters - row.zeros + row.blank) / _before(row) if _before(row) else 1.0


def is_blank(tensor: Tensor) -> bool:
    """Say whether this is a vector of zeros, as a bias is made: an event leaves some of it."""
    return tensor.dim() == 1 and not bool(tensor.any())


def summarize(model: nn.Module, example_inputs: Inputs | None = None) -> Summary:
    """Return sparsity, parameters, MACs and bytes of a model, per layer and in all.

    Args:
        model: dense, masked or compact; its mode, weights and random state stay as they are.
        example_inputs: of the forward pass: a tensor, a tuple of positional or a dict of keyword arguments; None: the
            model's own ``example_input_array``, and without that no MACs.

    Returns:
        a value; ``print`` it for a table.
    """
    example = example_of(model) if example_inputs is None else Example.of(example_inputs)
    macs = None if example is None else measure_macs(model, example)
    owned: dict[str, dict[str, Tensor]] = {}
    first = first_names(model)
    for name, tensor in dense_names(model).items():
        if first[name] == name and not is_lazy(tensor):
            owned.setdefault(name.rpartition(".")[0], {})[name] = tensor.detach()
    parameters = dense_parameters(model)
    before: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        plan = module.__dict__.get(PLAN)
        for name, shape in {} if plan is None else plan.shapes.items():
            # what a submodule lost by itself, it lost later
            before.setdefault(f"{path}.{name}" if path else name, shape)
    layers = [
        _layer(path, type(model.get_submodule(path)).__name__, own, parameters.keys() & own.keys(), macs, before)
        for path, own in owned.items()
    ]
    if macs is None:
        return Summary(tuple(layers), None)
    return Summary(tuple(layers), macs.total, state_in(model, macs.state))


def _layer(
    path: str,
    kind: str,
    own: Mapping[str, Tensor],
    trained: Set[str],
    macs: "Macs | None",
    before: Mapping[str, Sequence[int]],
) -> LayerSummary:
    zeros = {name: own[name].numel() - int(torch.count_nonzero(own[name])) for name in trained}
    measured = (
        None
        if macs is None
        else {name: macs.per_weight.get(name, 0) + macs.of_attention.get(name, 0) for name in (*own, f"{path}.")}
    )
    if measured is not None and macs is not None:
        measured[f"{path}."] += sum(macs.of_products.get(name, 0) for name in own)
    density = {name: 1 - zeros[name] / max(own[name].numel(), 1) for name in trained}
    main = max(own, key=lambda name: (name in trained, own[name].dim()))
    parameters = sum(own[name].numel() for name in trained)
    dense = sum(math.prod(before.get(name, own[name].shape)) for name in trained)
    return LayerSummary(
        name=path,
        kind=kind,
        shape=tuple(own[main].shape),
        parameters=parameters,
        zeros=sum(zeros.values()),
        macs=None if measured is None else sum(measured.values()),
        effective_macs=None if measured is None else round(sum(n * density.get(k, 1.0) for k, n in measured.items())),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in own.values()),
        parameters_before=None if dense == parameters else dense,
        blank=sum(own[name].numel() for name in trained if is_blank(own[name])),
    )


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Args:
        total: of the whole network.
        per_weight: dense name of a convolution's or Linear's weight -> those of all layers that use it.
        of_attention: dense name of a weight of ``nn.MultiheadAttention``, or the path of the module and a dot for the
            products of activations, which read no weight -> those.
        of_products: dense name of a weight -> those of the products of activations that ran after its layer and before
            the next one, as in an attention written by hand, whose heads that layer makes.
        state: names of the buffers that the pass changed.
    """

    total: int
    per_weight: Mapping[str, int]
    of_attention: Mapping[str, int] = field(default_factory=dict)
    of_products: Mapping[str, int] = field(default_factory=dict)
    state: tuple[str, ...] = ()

    def of_parameters(self, shrinking: Collection[str]) -> dict[str, int]:
        """Return dense name of a parameter -> those that go with it, in proportion to its size.

        Args:
            shrinking: dense names of the parameters that may lose channels. Among them, the bias of an attention's
                projections, which has an entry for each channel of the heads, stands for products of activations; so
                does the bias of the layer that ran before products written by hand.
        """
        counts = dict[str, int]()
        for name, count in (*self.per_weight.items(), *self.of_attention.items()):
            known = [f"{name}{own}" for own in ("in_proj_bias", "out_proj.weight") if f"{name}{own}" in shrinking]
            place = name if not name.endswith(".") else next(iter(known), "")
            if place:
                counts[place] = counts.get(place, 0) + count
        for name, count in self.of_products.items():
            bias = f"{name.rpartition('.')[0]}.bias".removeprefix(".")
            place = bias if bias in shrinking else name
            counts[place] = counts.get(place, 0) + count
        return counts


def measure_macs(model: nn.Module, example_inputs: Inputs) -> Macs:
    """Run one forward pass and count multiply-accumulates (half of torch.utils.flop_counter's operations).

    Args:
        model: any module; run in eval mode without gradients, and put back as it was. One with lazy layers is copied.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; all of it counts, of an example
            that was learnt one sample, see :func:`single`.

    Raises:
        ValueError: the model rejects the example input.
    """
    model = plain_copy(model) if any(map(is_lazy, model.parameters())) else model
    example = single(model, Example.of(example_inputs)).on_device_of(model)
    plain = (x for x in dense_parameters(model).values() if type(x) in (Tensor, nn.Parameter))
    products = Products({x.untyped_storage().data_ptr() for x in plain})
    mapping = {torch.ops.aten.bmm: products, torch.ops.aten.baddbmm: products}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    counting = counted(model, products)
    with (
        as_evaluated(model),
        kept_state(model) as changed,
        torch.no_grad(),
        counting as counts,
        counter,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
        # the counter's hooks are global, and a wrapper has nothing to count
        warnings.filterwarnings("ignore", message="Using `torch.compile")
        try:
            # some fused attentions and the LSTM of oneDNN are kernels that torch 2.13's counter does not know
            with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
                example(model)
        except Exception as error:
            raise ValueError(f"{type(model).__name__} rejects the example input {example}: {error}") from error
        state = changed()
    return Macs(counter.get_total_flops() // 2, *counts, products.counts, state)


def single(model: nn.Module, example: Example) -> Example:
    """Return the example on which figures are told and programs written: of a learnt one, one sample.

    A fit and :func:`~lightning_prune.prune` learn two samples, so that what depends on the batch shows; the user gave
    none of them. An example that a user gave stands as it is, and so does a learnt one whose batch is not known, since
    the first axes of its tensors differ, or of which the model does not take one sample alone, such as pairs.

    Args:
        model: run in eval mode without gradients, and put back as it was.
        example: of its forward.
    """
    if not example.is_learnt:
        return example
    one = replace(first_samples(example, 1), is_learnt=False)
    with as_evaluated(model), kept_state(model), torch.no_grad():
        try:
            one.on_device_of(model)(model)
        except Exception:  # whatever a forward of pairs raises
            return replace(example, is_learnt=False)
    return one


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into eval mode for a while; every module gets its own mode back, and the random state.

    What torch.compile made of it is left aside.
    """
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    devices = {t.device.index or 0 for t in dense_parameters(model).values() if t.is_cuda}
    # a compiled forward that runs once inside a dispatch mode, such as one that counts, is never compiled again (torch
    # 2.13); nothing is compiled before _dynamo is loaded, and to ask would load it
    is_compiling = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if is_compiling else nullcontext()
    with torch.random.fork_rng(devices=sorted(devices)), eager:
        model.eval()
        # the fused attention of eval mode reads weights past the hooks and its work cannot be counted
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield model
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, mode in modes.items():
                module.training = mode
