"""Mixtures of experts: hidden units of the experts go exactly, however tokens are routed; experts stay, and why."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_oracle import check_exact, sizes
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.graph import channel_groups

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
STREAM, HIDDEN, EXPERTS = 8, 12, 4


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(STREAM, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, STREAM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Routed(nn.Module):
    """Each expert computes the tokens that are routed to it, in a loop, as Mixtral's and DeepSeek's own code do."""

    def __init__(self, is_indexed: bool) -> None:
        super().__init__()
        self.router = nn.Linear(STREAM, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.is_indexed = is_indexed

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.topk(self.router(flat).softmax(-1), 2)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == number)
            made = weights[rows, places, None] * expert(flat[rows])
            if self.is_indexed:
                out[rows] += made
            else:
                out.index_add_(0, rows, made)
        return out.view_as(x)


class Everywhere(Routed):
    """Each expert computes all tokens; those that are not chosen count zero, or all of them count."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        weights = logits.softmax(-1)
        if self.is_indexed:
            values, chosen = torch.topk(logits, 2)
            weights = torch.zeros_like(logits).scatter(-1, chosen, values.softmax(-1))
        return torch.stack([expert(x) for expert in self.experts], -1).mul(weights[..., None, :]).sum(-1)


class Packed(nn.Module):
    """The weights of all experts in one tensor of three axes."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.router, self.by = nn.Linear(STREAM, EXPERTS, bias=False), by
        self.up = nn.Parameter(torch.randn(EXPERTS, STREAM, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, STREAM))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        if self.by == "einsum":
            hidden = F.gelu(torch.einsum("btd,edh->bteh", x, self.up))
            return (torch.einsum("bteh,ehd->bted", hidden, self.down) * weights[..., None]).sum(-2)
        flat = x.reshape(-1, x.shape[-1])
        if self.by == "bmm":
            hidden = F.gelu(torch.bmm(flat.expand(EXPERTS, -1, -1), self.up))
            made = torch.bmm(hidden, self.down)
            return (made * weights.flatten(0, 1).t()[..., None]).sum(0).view_as(x)
        chosen = weights.flatten(0, 1).argmax(-1)
        hidden = F.gelu(torch.bmm(flat[:, None], self.up[chosen]))
        return torch.bmm(hidden, self.down[chosen])[:, 0].view_as(x)


class Rms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(STREAM)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Block(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.enter, self.norm, self.inner = nn.Linear(6, STREAM), Rms(), inner
        self.last, self.head = Rms(), nn.Linear(STREAM, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(self.last(x + self.inner(self.norm(x))))


EACH = {f"inner.experts.{number}.gate": HIDDEN for number in range(EXPERTS)}
MIXTURES: dict[str, tuple[Callable[[], nn.Module], dict[str, int], str]] = {
    "a loop, index_add": (lambda: Routed(False), EACH, "topk at inner"),
    "a loop, indexed": (lambda: Routed(True), EACH, "topk at inner"),
    "all tokens, some count": (lambda: Everywhere(True), EACH, "topk at inner"),
    "all tokens, all count": (lambda: Everywhere(False), EACH, "softmax at inner"),
    "packed, einsum": (lambda: Packed("einsum"), {"inner": HIDDEN}, "softmax at inner"),
    "packed, bmm": (lambda: Packed("bmm"), {"inner": HIDDEN}, "softmax at inner"),
    "packed, a weight for each token": (lambda: Packed("index"), {"inner": HIDDEN}, "softmax at inner"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_hidden_units_of_experts_go_with_the_stream_and_experts_stay(name: str) -> None:
    make, hidden, reason = MIXTURES[name]
    groups = check_exact(Block(make()), X)
    assert groups.unknown == ()
    assert sizes(groups) == {"enter": STREAM, **hidden}
    # the router of a masked expert gives 0, which is a number like any: it would still be chosen and still be counted
    assert groups["inner.router"].reason in (f"{reason} mixes its channels", "softmax at inner mixes its channels")


class Gated(Packed):
    """Each expert has a gate of its own, which is no part of a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("btd,edh->bteh", x, self.up))
        return (torch.einsum("bteh,ehd->bted", hidden, self.down) * self.router(x).sigmoid()[..., None]).sum(-2)


def test_whole_experts_go_where_their_gates_are_their_own() -> None:
    groups = check_exact(Block(Gated("einsum")), X)
    (experts,) = (group for group in groups if group.prunable and group.size == EXPERTS)
    assert {(member.parameter, member.axis) for member in experts.members} == {
        ("inner.router.weight", 0),
        ("inner.up", 0),
        ("inner.down", 0),
    }


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_packed_experts_of_transformers(implementation: str) -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs the transformers package")
    transformers: Any = importlib.import_module("transformers")
    settings = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "use_cache": False}
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**settings, **heads)).eval()
    model.set_experts_implementation(implementation)
    tokens = torch.randint(3, 60, (2, 8))
    groups = channel_groups(model, tokens)
    assert sizes(groups) == {
        "model.embed_tokens": 32,
        "model.layers.0.self_attn.q_proj": 2,
        "model.layers.0.mlp.experts": 48,
    }
    keep = {group.name: range(group.size // 2) for group in groups if group.prunable}
    report = compact(model, Compaction.from_keep(groups, keep), tokens)
    assert report.put_back == {}
    assert report.parameters_after < 0.35 * report.parameters_before
