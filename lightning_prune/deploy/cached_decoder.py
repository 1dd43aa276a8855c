"""Decoders of Hugging Face with their cache in buffers, where a program keeps it from call to call."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.values import check_whole

_NAME = "lightning_prune"
"""Of this module's attention, among those of transformers."""
_NEVER = -1e9
"""Added to the scores of places that are not to be seen."""


class CachedDecoder(nn.Module):
    """A decoder of Hugging Face as a program for text: ``forward(tokens, position)``, its cache in buffers.

    ``tokens`` have the shape (1, n) and ``position``, their places in the text, (n,). What comes back are the logits of
    what follows the last, (1, 1, vocabulary). Keys and values of layer i are the buffers ``keys_i`` and ``values_i`` of
    the shape (1, heads, max_length, width); by ``channel_groups`` and ``compact`` of this module they lose the heads
    that the layer loses. Queries that share keys do not repeat them.

    Args:
        model: with a head, such as ``LlamaForCausalLM``: Llama, Qwen 3, Mistral, Gemma 2 and 3, GPT-2 and what is
            written like them, in the way that transformers 5.23 has them. It is not copied; its own ways of calling it
            stay.
        max_length: places of the cache.

    Raises:
        ValueError: ``max_length`` is below 2 or above what the model has places for, or it has layers without keys.
        TypeError: it is no decoder of Hugging Face.

    Example:
        >>> model = transformers.Qwen3ForCausalLM(config)  # doctest: +SKIP
        >>> decoder = CachedDecoder(model, max_length=512)  # doctest: +SKIP
        >>> text = Generation(512, eos=151645)  # doctest: +SKIP
        >>> artifact = export(decoder, "model.pte", generation=text)  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, *, max_length: int) -> None:
        super().__init__()
        from transformers import PreTrainedModel

        if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder or not model.can_generate():
            raise TypeError(
                f"CachedDecoder: got a {type(model).__name__}, must be a decoder of transformers with a head, such as"
                " LlamaForCausalLM; write a decoder of your own with its cache in buffers, as in docs/generation.md"
            )
        check_whole("CachedDecoder.max_length", max_length, 2)
        most = getattr(model.config, "max_position_embeddings", max_length)
        if max_length > most:
            raise ValueError(f"CachedDecoder.max_length is {max_length}, and {type(model).__name__} has {most} places")
        self.model, self.max_length = model, max_length
        self.example_input_array = torch.zeros(1, 2, dtype=torch.long), torch.arange(2)
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if unknown := kinds - {"full_attention", "sliding_attention"}:
            raise ValueError(f"CachedDecoder: {type(model).__name__} has layers of {', '.join(sorted(unknown))}")
        with torch.no_grad():
            made = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
        for index, layer in enumerate(made.past_key_values.layers):
            for name, x in (("keys", layer.keys), ("values", layer.values)):
                self.register_buffer(f"{name}_{index}", x.new_zeros(1, x.shape[1], max_length, x.shape[3]))

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Return the logits (1, 1, vocabulary) of what follows tokens (1, n) at their places (n,).

        Changes:
            the buffers: they hold keys and values of these places.
        """
        from transformers import AttentionInterface

        places, here = torch.arange(self.max_length, device=position.device), position.unsqueeze(1)
        config, seen = self.model.config, places <= here
        window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        if window is not None and kinds is None:
            kinds = ["sliding_attention"]
        masks = {
            "full_attention": seen,
            "sliding_attention": seen if window is None else seen & (places > here - window),
        }
        for name, each in masks.items():
            # of the dtype of the scores: torch 2.13 takes float32 beside float64, and reads it wrongly on a CPU
            masks[name] = torch.where(each, 0.0, _NEVER).to(self.get_buffer("keys_0").dtype)[None, None]
        kinds = set(kinds or ["full_attention"])
        mask: Any = masks if len(kinds) > 1 else masks[kinds.pop()]  # a model of one kind takes the mask itself
        AttentionInterface.register(_NAME, _attention)
        before, config._attn_implementation = config._attn_implementation, _NAME
        try:
            return self.model(
                input_ids=tokens,
                position_ids=position[None],
                attention_mask=mask,
                past_key_values=_Cache(self, position),
                use_cache=True,
                logits_to_keep=1,
            ).logits
        finally:  # the model's other callers keep its own
            config._attn_implementation = before


class _Cache:
    """What the layers of transformers write into and read from, instead of a cache of its own."""

    is_compileable, is_sliding, layers = True, (), ()

    def __init__(self, decoder: CachedDecoder, position: Tensor) -> None:
        self.decoder, self.position = decoder, position

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write what a layer made, and return all that it knows."""
        held = self.decoder.get_buffer(f"keys_{layer}"), self.decoder.get_buffer(f"values_{layer}")
        for buffer, new in zip(held, (keys, values), strict=True):
            buffer.index_copy_(2, self.position, new)
        return held


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, with queries of shared keys as rows of one product."""
    root = query.shape[-1] ** -0.5
    factor: float = root if scaling is None else scaling
    if softcap is None:
        # unsaid where it is the width's own, by which the heads of a cache are found as channels
        scale = None if math.isclose(factor, root) else factor
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    else:
        groups, count = key.shape[1], query.shape[2]
        scores = query.unflatten(1, (groups, -1)).flatten(2, 3) @ key.transpose(2, 3) * factor
        scores = (torch.tanh(scores / softcap) * softcap).unflatten(2, (-1, count)).flatten(1, 2) + mask
        y = scores.softmax(-1).unflatten(1, (groups, -1)).flatten(2, 3) @ value
        y = y.unflatten(2, (-1, count)).flatten(1, 2)
    return y.transpose(1, 2).contiguous(), None
