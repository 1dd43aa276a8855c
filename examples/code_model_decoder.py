"""A decoder as Llama's, which keeps keys and values from call to call; its queries share them in groups."""

import torch
from code_model_data import LENGTH, VOCABULARY
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Heads of queries in groups that share keys and values, which a cache holds."""

    def __init__(self, width: int, heads: int, groups: int, length: int) -> None:
        super().__init__()
        self.size = width // heads
        self.query, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, groups, length, self.size), persistent=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], position: Tensor | None, mask: Tensor | None) -> Tensor:
        """Map (batch, n, width) to the same; with positions one text, beside all that the cache holds of it."""
        q, k, v = (p(x).unflatten(2, (-1, self.size)).transpose(1, 2) for p in (self.query, self.key, self.value))
        q, k = turned(q, *turn), turned(k, *turn)
        if position is not None:
            self.keys.index_copy_(2, position, k)
            self.values.index_copy_(2, position, v)
            k, v = self.keys, self.values
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of a head by the angles of their places."""
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat([-b, a], -1) * sin


class Block(nn.Module):
    """Attention and a gated MLP, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, groups: int, hidden: int, length: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width, 1e-6) for _ in range(2))
        self.attention = Attention(width, heads, groups, length)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, *place: object) -> Tensor:
        """Map (batch, n, width) to the same."""
        x = x + self.attention(self.norms[0](x), *place)
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Blocks between a table of bytes and a head.

    Args:
        width: of the stream.
        heads: of queries.
        groups: of keys and values.
        hidden: units of the MLP.
        depth: number of blocks.
        length: places of the cache.
    """

    def __init__(
        self,
        width: int = 256,
        heads: int = 8,
        groups: int = 2,
        hidden: int = 768,
        depth: int = 2,
        length: int = LENGTH,
    ) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, groups, hidden, length) for _ in range(depth))
        self.norm = nn.RMSNorm(width, 1e-6)
        size = width // heads
        angles = torch.outer(torch.arange(length), 1e4 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        for name, value in (("cos", angles.cos()), ("sin", angles.sin()), ("places", torch.arange(length))):
            self.register_buffer(name, value, persistent=False)

    def forward(self, tokens: Tensor, position: Tensor | None = None) -> Tensor:
        """Return logits: of what follows each of the tokens (batch, n), as they are trained.

        With positions (n,) of what follows the last of a text that goes on: (1, 1, 256).
        """
        at = self.places[: tokens.shape[1]] if position is None else position
        x = self.words(tokens)
        # of the dtype of the scores: torch 2.13 takes float32 beside float64, and reads it wrongly on a CPU
        mask = None if position is None else torch.where(self.places <= position.unsqueeze(1), 0.0, -1e9).to(x.dtype)
        for block in self.blocks:
            x = block(x, (self.cos[at], self.sin[at]), position, mask)
        return self.head(self.norm(x if position is None else x[:, -1:]))
