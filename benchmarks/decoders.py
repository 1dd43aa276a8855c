"""What is left of decoders with RMS norms: heads, the width inside them, the MLP and the residual stream.

    python -m benchmarks.decoders

Two goes, both proven at float64: heads, MLP and stream first, then the width of query, key and value, and the share of
parameters left after each. The table goes to docs/transformers.md.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune import Compaction, channel_groups, compact

PAGE = Path(__file__).parent.parent / "docs" / "transformers.md"


class Norm(nn.Module):
    """An RMS norm as Hugging Face writes it; Gemma stores the weight less one."""

    def __init__(self, width: int, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.offset = nn.Parameter(torch.ones(width) - offset), 1e-6, offset

    def forward(self, x: Tensor) -> Tensor:
        """Return x over the root of the mean of its squares."""
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return x * (self.offset + self.weight) if self.offset else self.weight * x


class Block(nn.Module):
    """Grouped queries, rotary pairs, a gated MLP; norms of query and key where wanted (Qwen 3)."""

    def __init__(self, width: int, heads: int, shared: int, hidden: int, offset: float, has_norms: bool) -> None:
        super().__init__()
        self.heads, self.shared, self.size, self.act = heads, shared, width // heads, F.gelu if offset else F.silu
        self.first, self.second = Norm(width, offset), Norm(width, offset)
        self.of_q, self.of_k = (Norm(self.size) if has_norms else nn.Identity() for _ in range(2))
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, shared * self.size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)
        angles = torch.outer(torch.arange(64.0), 1e4 ** (-torch.arange(0, self.size, 2) / self.size))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turned(self, x: Tensor) -> Tensor:
        """Turn pairs by the angle of their place."""
        cos, sin = self.get_buffer("cos")[: x.shape[2]], self.get_buffer("sin")[: x.shape[2]]
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream with attention and MLP added."""
        y = self.first(x)
        q = self.turned(self.of_q(self.q(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)))
        k = self.turned(self.of_k(self.k(y).unflatten(-1, (self.shared, -1)).transpose(1, 2)))
        v = self.v(y).unflatten(-1, (self.shared, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + self.down(self.act(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self, offset: float = 0.0, has_norms: bool = False) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(512, 256), nn.Linear(256, 512, bias=False)
        self.blocks = nn.Sequential(*(Block(256, 8, 4, 688, offset, has_norms) for _ in range(2)))
        self.norm = Norm(256, offset)

    def forward(self, ids: Tensor) -> Tensor:
        """Return 512 logits for each place."""
        return self.head(self.norm(self.blocks(self.embedding(ids))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Llama-like": Decoder,
    "Qwen-like (norms of query and key)": lambda: Decoder(has_norms=True),
    "Gemma-like (1 + weight)": lambda: Decoder(1.0),
}


def row(name: str, stream: float) -> str:
    """Remove half of every other group, and leave this share of the residual stream."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double().eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() < 2 else 0.02))
    ids = torch.randint(512, (2, 16))
    before, errors, left = sum(p.numel() for p in model.parameters()), list[float](), list[float]()
    of_blocks = sum(p.numel() for p in model.get_submodule("blocks").parameters())
    for attention in ("heads", "width"):
        groups = channel_groups(model, ids, attention=attention)
        shares = {group.name: stream if group.name == "embedding" else 0.5 for group in groups if group.prunable}
        if attention == "width":  # the rest is done
            shares = {name: share for name, share in shares.items() if name.endswith((".q", ".k", ".v"))}
        keep = {name: range(round(groups[name].size * share)) for name, share in shares.items()}
        report = compact(model, Compaction.from_keep(groups, keep), ids)
        assert not report.put_back, report.put_back
        errors.append(report.errors["float64"])
        left.append(report.parameters_after / before)
    blocks = sum(p.numel() for p in model.get_submodule("blocks").parameters()) / of_blocks
    figures = f"{left[0]:.1%} | {left[1]:.1%} | {blocks:.1%} | {max(errors):.0e}"
    return f"| {name}, {stream:.0%} of the stream | {figures} |"


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    page = PAGE.read_text(encoding="utf-8")
    for name in NETWORKS:
        for stream in (1.0, 0.75, 0.5):
            made = row(name, stream)
            print(made, flush=True)
            start = re.escape(made.split(" | ")[0])
            page = re.sub(rf"^{start} \|.*$", lambda _, made=made: made, page, flags=re.MULTILINE)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
