"""``nn.MultiheadAttention`` with fewer heads: torch's own module computes with the sizes that it was built with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune.model import counting
from lightning_prune.model.window_attention import resizable, settled, torchvisions_own


class ResizableAttention(nn.MultiheadAttention):
    """Computes what torch's module does, with as many heads as its tensors hold.

    It is never built: the class of a module of torch is set to it while the parameters, their names, hooks and masks
    stay (:func:`let_resize`), and back (:func:`settled_class`).

    The last axis of what the projections give is cut into ``num_heads`` heads of whatever width is left; ``head_dim``
    stays what the module was built with, since its root scales the softmax.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the outputs and the weights, as :meth:`torch.nn.MultiheadAttention.forward` does."""
        if query.is_nested:
            # sequences without their padding, as nn.TransformerEncoder packs them in eval mode: its fast path computes
            # with them itself; it takes them apart, too, where its layers do not take that path
            padded, lengths = query.to_padded_tensor(0.0), query._nested_tensor_size()[:, 0]
            is_there = (torch.arange(padded.shape[1]) < lengths[:, None]).to(padded.device)
            output = self.forward(padded, padded, padded, key_padding_mask=~is_there, need_weights=False)[0]
            return torch._nested_tensor_from_mask(output, is_there), None  # pyright: ignore[reportPrivateImportUsage]
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        mask = self._merged(query, key_padding_mask, attn_mask)
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        is_causal = is_causal and key_padding_mask is None and not need_weights

        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        scale, dropout, attention = self.head_dim**-0.5, self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * scale) @ k.transpose(-2, -1)
            attention = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            heads = attention @ v
            attention = attention if is_batched else attention.squeeze(0)
            attention = attention.mean(-3) if average_attn_weights else attention
        else:
            # with the hint torch lets its kernels make the mask themselves
            mask = None if is_causal else mask
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scale)
        # a call, which torch's own module does not make: hooks see what enters the projection
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not is_batched:
            return output.squeeze(0), attention
        return output if self.batch_first else output.transpose(0, 1), attention

    def _merged(self, query: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """Return both masks as one that is added, of a shape that is broadcast to (batch, heads, places, places)."""
        padding = F._canonical_mask(
            key_padding_mask, "key_padding_mask", F._none_or_dtype(attn_mask), "attn_mask", query.dtype
        )
        mask = F._canonical_mask(attn_mask, "attn_mask", None, "", query.dtype, check_other=False)
        if mask is not None and mask.dim() == 3:
            if mask.shape[0] != len(query) * self.num_heads:
                raise RuntimeError(
                    f"attn_mask has shape {tuple(mask.shape)}, and a batch of {len(query)} needs"
                    f" {len(query) * self.num_heads} masks for the {self.num_heads} heads that are left"
                )
            mask = mask.unflatten(0, (len(query), self.num_heads))
        if padding is None:
            return mask
        return padding[:, None, None] if mask is None else mask + padding[:, None, None]


def why_rigid(module: nn.Module, has_own_masks: bool = False) -> str:
    """Return why a module keeps its sizes whatever reads it, in words that follow its name; "" where it does not.

    Args:
        module: any.
        has_own_masks: whether it is an attention that gets a mask for each head.
    """
    if isinstance(module, nn.RNNCellBase):
        # what a subclass computes is its own
        return "" if type(module) in (nn.RNNCell, nn.GRUCell, nn.LSTMCell) else "keeps its size"
    if not isinstance(module, nn.MultiheadAttention):
        return ""
    if has_own_masks:
        return "takes a mask for each head, of (batch * num_heads, L, S), and keeps its size"
    if module.bias_k is not None or module.bias_v is not None:
        return "adds a key and a value of its own (add_bias_kv), and keeps its size"
    if module.add_zero_attn:
        return "adds a key and a value of zeros (add_zero_attn), and keeps its size"
    # what a subclass computes is its own
    return "" if type(module) in (nn.MultiheadAttention, ResizableAttention) else "keeps its size"


def let_resize(model: nn.Module) -> set[nn.Module]:
    """Give each ``nn.MultiheadAttention``, and each of torchvision's attentions, the class in which it can lose heads.

    Returns:
        a set into which a module goes when a forward pass gives it a mask for each head.

    Changes:
        the class of these modules, and a forward pre-hook that fills the set: for copies.
    """
    with_own_masks: set[nn.Module] = set()

    def note(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = args[5] if len(args) > 5 else kwargs.get("attn_mask")
        if mask is not None and mask.dim() == 3:
            with_own_masks.add(attention)

    for module in model.modules():
        set_class(module, _resizable_class(module))
        if isinstance(module, ResizableAttention):
            module.register_forward_pre_hook(note, with_kwargs=True)
    return with_own_masks


@contextmanager
def calling_projections(model: nn.Module) -> Iterator[None]:
    """Let attentions call their output projection for a while, so that its hooks see what enters it."""
    before = {module: type(module) for module in model.modules()}
    try:
        for module in before:
            set_class(module, _resizable_class(module))
        yield
    finally:
        for module, kind in before.items():
            set_class(module, kind)


def _resizable_class(module: nn.Module) -> type[nn.Module]:
    """Return the class in which a module can lose heads; its own where that is it, or there is none."""
    own = torchvisions_own(type(module))
    if own is not None:
        return resizable(own)
    is_torchs = isinstance(module, nn.MultiheadAttention) and not why_rigid(module)
    return ResizableAttention if is_torchs else type(module)


def set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Set the class of a module.

    Changes:
        the module. The flag keeps ``nn.TransformerEncoderLayer``, whose fast path reads weights and heads itself,
        from going past ``forward`` (torch 2.13).
    """
    if type(module) is kind:
        return
    module.__class__ = kind
    if isinstance(module, nn.MultiheadAttention):
        is_packed = module.in_proj_weight is not None
        module._qkv_same_embed_dim = is_packed and kind is not ResizableAttention


def settled_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that the sizes of a module ask for: its own where its code can compute with them."""
    if (own := torchvisions_own(type(module))) is not None:
        return settled(module, own)
    if not isinstance(module, nn.MultiheadAttention) or why_rigid(module):
        return counting.settled(module)
    packed, width = module.in_proj_weight, module.embed_dim
    rows = module.q_proj_weight.shape[0] if packed is None else packed.shape[0] / 3
    is_whole = rows == width == module.out_proj.weight.shape[1] == module.num_heads * module.head_dim
    return nn.MultiheadAttention if is_whole else ResizableAttention


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Let torch's transformer layers compute as they are written.

    Their fast path reads weights past every module, and gives zeros where a sequence is padded (torch 2.13).
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
