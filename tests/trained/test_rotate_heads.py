"""Heads that are rotated compute what they computed, their slots are ordered, and what cannot be rotated is named."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune import Compaction, channel_groups, compact, rotate, rotate_heads
from lightning_prune.errors import CompactionError, GraphError, PruningError
from lightning_prune.model import masks

WIDTH, HEADS, SLOTS = 16, 2, 8


class OneInOut(nn.Module):
    """The weight of GPT-2's Conv1D, (in, out), and its addmm."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(WIDTH, out) / 4), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Attention in the spellings that there are."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.num_heads, self.out = kind, HEADS, nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.shared = 1 if kind == "grouped" else HEADS
        if kind == "grouped":
            self.k, self.v = nn.Linear(WIDTH, SLOTS), nn.Linear(WIDTH, SLOTS)
        if kind in ("fused", "output", "gated", "linear"):
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        if kind == "(in, out)":
            self.qkv, self.out = OneInOut(3 * WIDTH), OneInOut(WIDTH)
        if kind == "parameters":
            self.weights = nn.Parameter(torch.randn(3, WIDTH, HEADS, SLOTS) / 4)
            self.back = nn.Parameter(torch.randn(HEADS, SLOTS, WIDTH) / 4)
        if kind == "torch's":
            self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        if kind == "torch's, of three":
            self.mha = nn.MultiheadAttention(WIDTH, HEADS, kdim=6, vdim=10)
        if kind == "norms":
            self.norm = nn.RMSNorm(SLOTS)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        if hasattr(self, "qkv"):
            return self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return tuple(
            layer(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer, heads in ((self.q, self.num_heads), (self.k, self.shared), (self.v, self.shared))
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.kind == "torch's":
            return self.mha(x, x, x)[0]
        if self.kind == "torch's, of three":
            x = x.transpose(0, 1)
            return self.mha(x, x[..., :6], x[..., :10], need_weights=False)[0].transpose(0, 1)
        if self.kind == "parameters":
            q, k, v = (torch.einsum("bld,dhe->bhle", x, weight) for weight in self.weights)
            p = torch.einsum("bhle,bhme->bhlm", q, k).softmax(-1)
            return torch.einsum("blhe,hed->bld", torch.einsum("bhlm,bhme->blhe", p, v), self.back)
        q, k, v = self.heads(x)
        if self.kind == "by hand":
            made = ((q * SLOTS**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        elif self.kind == "linear":
            made = q @ (k.transpose(-2, -1) @ v)
        else:
            if self.kind == "rotary":
                angle = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001]).repeat(2)
                q, k = (y * angle.cos() + torch.cat([-y[..., 4:], y[..., :4]], -1) * angle.sin() for y in (q, k))
            q = self.norm(q) if self.kind == "norms" else q
            v = k if self.kind == "keys are values" else v
            made = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kind == "grouped")
        made = made * q.sigmoid() if self.kind == "gated" else made
        made = made.transpose(1, 2).flatten(2)
        made = made @ self.q.weight if self.kind == "turned" else self.out(made)
        return (made, v) if self.kind == "output" else made


class Net(nn.Module):
    """Two post-norm blocks, which share a module or a weight where that is asked for."""

    def __init__(self, kind: str, shared: str = "") -> None:
        super().__init__()
        self.first, self.second = Attention(kind), Attention(kind)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        if shared == "module":
            self.second = self.first
        elif shared == "weights":  # the biases differ
            for name in ("q", "k", "v", "out"):
                getattr(self.second, name).weight = getattr(self.first, name).weight
        elif shared == "a query is a key":
            self.second.k.weight = self.first.q.weight
        elif shared == "a query is a reader":
            self.second.out.weight = self.first.q.weight  # type: ignore[assignment]
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() == 1:
                    parameter += 0.3 * torch.randn_like(parameter)

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        x, others = (self.norm(x + y[0]), y[1:]) if isinstance(y, tuple) else (self.norm(x + y), ())
        y = self.second(x)
        return self.head(x + (y[0] if isinstance(y, tuple) else y)), *others


X = torch.randn(32, 7, WIDTH, generator=torch.Generator().manual_seed(0))
BOTH, VALUES, QUERIES = (False, True), (True,), (False,)
ROTATED: dict[str, tuple[Callable[[], nn.Module], tuple[bool, ...]]] = {
    "a layer each": (lambda: Net("plain"), BOTH),
    "by hand": (lambda: Net("by hand"), BOTH),
    "one layer": (lambda: Net("fused"), BOTH),
    "(in, out), as GPT-2 has it": (lambda: Net("(in, out)"), BOTH),
    "parameters and einsum": (lambda: Net("parameters"), BOTH),
    "nn.MultiheadAttention": (lambda: Net("torch's"), BOTH),
    "nn.MultiheadAttention, kdim and vdim": (lambda: Net("torch's, of three"), BOTH),
    "grouped queries": (lambda: Net("grouped"), BOTH),
    "a query is a key elsewhere": (lambda: Net("plain", "a query is a key"), BOTH),
    "a module used twice": (lambda: Net("plain", "module"), BOTH),
    "weights of two modules": (lambda: Net("plain", "weights"), BOTH),
    "rotary positions": (lambda: Net("rotary"), VALUES),
    "norms of queries": (lambda: Net("norms"), VALUES),
    "values that the model gives": (lambda: Net("output"), QUERIES),
}


@pytest.mark.parametrize("case", ROTATED)
def test_the_rotated_model_computes_the_same(case: str) -> None:
    make, kinds = ROTATED[case]
    model = make().double().train()
    before = copy.deepcopy(model).eval()
    rotation = rotate_heads(model, [X[:16].double(), X[16:].double()])
    assert model.training
    for made, wanted in zip(model.eval()(X.double()), before(X.double()), strict=True):
        assert float((made - wanted).detach().abs().max() / wanted.detach().abs().max()) < 1e-9
    assert 0 < rotation.error < 1e-9
    assert {heads.is_of_values for heads in rotation.heads} >= set(kinds)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert {name for heads in rotation.heads for name in heads.weights} <= changed


@pytest.mark.parametrize("case", [name for name, (_, kinds) in ROTATED.items() if kinds == BOTH])
def test_no_other_half_of_the_slots_keeps_more_of_the_scores(case: str) -> None:
    """Both sides are uncorrelated after it, equally long, and the first slots the longest."""
    model = ROTATED[case][0]().eval()
    rotation = rotate_heads(model, [X])
    assert all(bool((heads.shares.diff() <= 1e-9).all()) for heads in rotation.heads)
    again = rotate_heads(copy.deepcopy(model), [X])
    for heads, turned in zip(rotation.heads, again.heads, strict=True):
        assert torch.allclose(heads.shares, turned.shares, atol=1e-4)  # there is nothing left to be turned


def test_what_the_slots_hold_is_in_order() -> None:
    model: Any = Net("plain").eval()
    queries, values = rotate_heads(model, [X]).heads[:2]
    first = model.first
    q, k = (layer(X).unflatten(-1, (HEADS, SLOTS)).detach().double() for layer in (first.q, first.k))
    k = k - k.mean((0, 1))  # what all keys have in common changes no softmax
    for head in range(HEADS):
        of_query, of_key = (torch.einsum("ble,blf->ef", y[:, :, head], y[:, :, head]) for y in (q, k))
        assert torch.allclose(of_query, of_key, rtol=1e-3, atol=1e-3 * float(of_key.max()))
        assert torch.allclose(of_key, torch.diag(of_key.diagonal()), atol=1e-3 * float(of_key.max()))
        energy = of_key.diagonal().square()
        assert torch.allclose(energy / energy.sum(), queries.shares[head], atol=1e-4)
        columns = first.out.weight.detach().double().unflatten(1, (HEADS, SLOTS))[:, head]
        products = columns.T @ columns
        assert torch.allclose(products, torch.diag(products.diagonal()), atol=1e-3 * float(products.max()))
    assert values.is_of_values
    assert values.shares.shape == (HEADS, SLOTS)


def test_the_last_slots_go_exactly_and_cost_least() -> None:
    torch.manual_seed(0)
    model = Net("plain").eval()
    wanted = model(X)[0]
    errors: dict[bool, float] = {}
    for is_rotated in (False, True):
        net = copy.deepcopy(model)
        if is_rotated:
            rotate_heads(net, [X])
        groups = channel_groups(net, X[:2], attention="width")
        keep = {group.name: range(SLOTS // 2) for group in groups if group.prunable and group.size == SLOTS}
        assert len(keep) == 4
        report = compact(net, Compaction.from_keep(groups, keep), X[:2])
        assert not report.put_back
        assert len(report.removed) == 4
        errors[is_rotated] = float((net(X)[0] - wanted).detach().abs().mean())
    assert errors[True] < 0.7 * errors[False]


class TwoWidths(nn.Module):
    """Heads of two widths, all in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.wide_out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.narrow, self.narrow_out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for heads, layer, out in ((2, self.wide, self.wide_out), (4, self.narrow, self.narrow_out)):
            q, k, v = layer(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x


def test_heads_of_two_widths_are_told_each_with_its_own_weights() -> None:
    heads = rotate_heads(TwoWidths(), [X]).heads
    assert {(each.is_of_values, tuple(each.shares.shape), each.weights) for each in heads} == {
        (False, (2, 8), ("wide.weight",)),
        (True, (2, 8), ("wide.weight", "wide_out.weight")),
        (False, (4, 4), ("narrow.weight",)),
        (True, (4, 4), ("narrow.weight", "narrow_out.weight")),
    }


def test_what_stays_is_named() -> None:
    rotation = rotate_heads(Net("rotary"), [X])
    assert rotation.stayed["query and key of first"].startswith(
        "mul at first multiplies each slot by a value of its own"
    )
    assert "query and key of first stays: mul at first" in str(rotation)
    assert "first, value and output: 2 heads of 8, " in str(rotation)
    rotation = rotate_heads(Net("norms"), [X])
    assert rotation.stayed["query and key of second"] == "rms_norm at second.norm works on single slots of the heads"
    assert rotate_heads(Net("output"), [X]).stayed["value of first"] == "an output of the model shows it"


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "keys are values": (lambda: Net("keys are values"), "key and value come from one weight"),
    "gated": (lambda: Net("gated"), "sigmoid at first works on single slots"),
    "tied in unlike ways": (lambda: Net("turned"), r"matmul at first uses first\.q\.weight as well"),
    "linear attention": (lambda: Net("linear"), "matmul at first multiplies what is no query and key"),
    "no attention": (lambda: nn.Sequential(nn.Linear(WIDTH, 4)), "no attention"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_rotated_is_refused(case: str) -> None:
    make, text = REFUSED[case]
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GraphError, match=text):
        rotate_heads(model, [X])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_does_something_else_as_well_stays() -> None:
    model = Net("plain", "a query is a reader")
    rotation = rotate_heads(model, [X])
    assert "first.q.weight" not in {name for heads in rotation.heads for name in heads.weights}
    assert rotation.stayed["query and key of first"].startswith("add in the model's own forward")


def test_after_the_stream() -> None:
    """A pre-norm model is rotated in both ways, one after the other."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, norm_first=True, activation="gelu")
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), encoder, nn.Linear(WIDTH, 3)).double().eval()
    wanted = model(X.double())
    rotate(model, [X.double()])
    rotation = rotate_heads(model, [X.double()])
    assert len(rotation.heads) == 4
    assert torch.allclose(model(X.double()), wanted, atol=1e-9)


def test_a_proof_that_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net("plain")
    before = copy.deepcopy(model.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "inv", lambda x: x)
        with pytest.raises(CompactionError, match="computes something else"):
            rotate_heads(model, [X])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert type(Net("torch's").first.mha) is nn.MultiheadAttention


def test_masked_models_and_other_arguments_are_refused() -> None:
    model = Net("plain")
    with pytest.raises(TypeError, match=r"rotate_heads\(model, data\).*nn\.Module"):
        rotate_heads("model", [X])  # type: ignore[arg-type]
    masks.attach(model, ["head.weight"])
    with pytest.raises(PruningError, match="carries masks: rotate_heads it"):
        rotate_heads(model, [X])
