"""Counts the multiply-accumulates of layers, attention and products of activations while a model runs."""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_prune.model.attention import ResizableAttention
from lightning_prune.model.computed import sources
from lightning_prune.model.masks import first_names


@dataclass
class Products:
    """Counts the products of batches of matrices, and which of them are of activations alone.

    Args:
        stored: where the parameters lie.
        after: dense name of the weight whose layer ran last; "" where products count elsewhere.
        counts: such a name -> MACs of the products of activations that ran since.
    """

    stored: Set[int]
    after: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    _get_raw = True  # torch 2.13's counter gives shapes in the place of tensors to what does not say so

    def __call__(self, *factors: Tensor, out_val: Tensor, **_: object) -> int:
        """Return the operations of ``bmm(a, b)`` or ``baddbmm(c, a, b)``, two of them for each MAC."""
        one, other = factors[-2:]
        count = out_val.numel() * one.shape[-1]
        if self.after and not {x.untyped_storage().data_ptr() for x in (one, other)} & self.stored:
            self.counts[self.after] = self.counts.get(self.after, 0) + count
        return 2 * count


@contextmanager
def counted(model: nn.Module, products: Products) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Count for a while the multiply-accumulates of each convolution and Linear, and of each attention, by name."""
    counts, of_attention = dict[str, int](), dict[str, int]()
    first = first_names(model)
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            # A computed weight is counted under the parameter that has its shape; a property's under its own name.
            own = next(reversed(sources(module)), "weight")
            name = f"{path}.{own}" if path else own
            name = first.get(name, name)
            counts[name] = 0
            count = partial(_count, counts, products, name)
            handles.append(module.register_forward_hook(count, with_kwargs=True))
        elif isinstance(module, nn.MultiheadAttention):
            handles.append(module.register_forward_pre_hook(lambda *_: setattr(products, "after", "")))
            count = partial(_count_attention, of_attention, path, first)
            handles.append(module.register_forward_hook(count, with_kwargs=True))
    try:
        yield counts, of_attention
    finally:
        for handle in handles:
            handle.remove()


def _count(
    counts: dict[str, int],
    products: Products,
    name: str,
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    out: Tensor,
) -> None:
    products.after = name
    # each output of a layer reads one row of its weight; each input of a transposed convolution meets one
    source = (*args, *kwargs.values())[0] if isinstance(module, _ConvTransposeNd) else out
    if isinstance(source, Tensor):
        counts[name] += source.numel() * cast(Tensor, module.weight).shape[1:].numel()


def _count_attention(
    counts: dict[str, int],
    path: str,
    first: Mapping[str, str],
    module: nn.MultiheadAttention,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    out: object,
) -> None:
    names = ("query", "key", "value")
    inputs: list[Tensor] = [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]
    prefix = f"{path}." if path else ""
    in_proj, width = module.in_proj_weight, module.out_proj.weight.shape[1]
    of_query = module.q_proj_weight.shape[0] if in_proj is None else (in_proj.shape[0] - width) // 2
    rows = [x.numel() // x.shape[-1] for x in inputs]
    for name, x, count, made in zip(names, inputs, rows, (of_query, of_query, width), strict=True):
        weight = f"{name[0]}_proj_weight" if in_proj is None else "in_proj_weight"
        key = first.get(prefix + weight, prefix + weight)
        counts[key] = counts.get(key, 0) + count * x.shape[-1] * made
    if not isinstance(module, ResizableAttention):  # which calls its projection, and so counts it as a layer
        key = first.get(f"{prefix}out_proj.weight", f"{prefix}out_proj.weight")
        counts[key] = counts.get(key, 0) + rows[0] * width * module.embed_dim
    source = inputs[1].shape[1 if module.batch_first and inputs[1].dim() == 3 else 0]
    counts[f"{path}."] = counts.get(f"{path}.", 0) + rows[0] * source * (of_query + width)
