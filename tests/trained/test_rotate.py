"""A rotated model computes what it computed, its width is ordered, and what cannot be rotated is named."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune import (
    Channel,
    Compaction,
    OneShot,
    Recipe,
    Targets,
    Uniform,
    channel_groups,
    compact,
    prune,
    rotate,
    rotate_heads,
)
from lightning_prune.compaction import applied_plan
from lightning_prune.compaction.rotation import Affine
from lightning_prune.errors import CompactionError, GraphError, NonFiniteError, PruningError
from lightning_prune.model import masks

WIDTH = 16


class ByHand(nn.Module):
    """RMSNorm as transformers writes it, at float32, with a vector around 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.zeros(WIDTH)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        at32 = x.to(torch.float32)
        at32 = at32 * torch.rsqrt(at32.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (1 + self.weight) * at32.to(x.dtype)


class Block(nn.Module):
    def __init__(self, norm: Callable[[], nn.Module], is_post: bool = False, scale: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2, self.is_post = norm(), norm(), is_post
        self.q, self.k, self.v = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8, bias=False), nn.Linear(WIDTH, 8)
        self.out, self.up, self.down = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.scale = nn.Parameter(torch.rand(WIDTH)) if scale else None

    def attend(self, x: Tensor) -> Tensor:
        heads = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_post:
            x = self.norm1(x + self.attend(x))
            return self.norm2(x + self.down(F.gelu(self.up(x))))
        y = self.attend(self.norm1(x))
        x = x + (y if self.scale is None else y * self.scale)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Vision(nn.Module):
    """Patches, a class token, learned positions."""

    def __init__(self, norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(WIDTH), **kinds: bool) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.place = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.blocks = nn.Sequential(*[Block(norm, **kinds) for _ in range(2)])
        self.norm, self.head = norm(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


class Words(nn.Module):
    """An embedding, tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(30, WIDTH), nn.Embedding(12, WIDTH)
        self.blocks = nn.Sequential(Block(ByHand), Block(ByHand))
        self.norm, self.head = ByHand(), nn.Linear(WIDTH, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.place(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class Sound(nn.Module):
    """A convolutional stem with a GELU, and positions behind it."""

    def __init__(self, places: int = 10) -> None:
        super().__init__()
        self.stem, self.place = nn.Conv1d(6, WIDTH, 3, padding=1), nn.Parameter(torch.randn(places, WIDTH))
        self.blocks = nn.ModuleList([Block(lambda: nn.LayerNorm(WIDTH)) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x)).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class OfTorch(nn.Module):
    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 24, batch_first=True, norm_first=True, activation="gelu")
        self.inp, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 5)
        self.encoder = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.inp(x)))


class Sums(nn.Module):
    """Changes the stream by itself between blocks, or gives it as it is."""

    def __init__(self, ends: str) -> None:
        super().__init__()
        self.inp, self.block, self.norm = nn.Linear(6, WIDTH), Block(lambda: nn.LayerNorm(WIDTH)), nn.LayerNorm(WIDTH)
        self.head, self.ends = nn.Linear(WIDTH, 5), ends

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.inp(x))
        if self.ends == "output":
            return self.norm(x)
        return self.head(self.norm(torch.tanh(x)))


DRAW = torch.Generator().manual_seed(0)
PICTURES, SOUNDS, IDS = torch.randn(64, 3, 8, 8, generator=DRAW), torch.randn(64, 6, 10), torch.randint(30, (64, 12))
ROTATED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "patches, class token, positions": (Vision, PICTURES),
    "layer scale": (lambda: Vision(scale=True), PICTURES),
    "RMSNorm": (lambda: Vision(lambda: nn.RMSNorm(WIDTH)), PICTURES),
    "no vector": (lambda: Vision(lambda: nn.LayerNorm(WIDTH, elementwise_affine=False)), PICTURES),
    "tied head, RMSNorm by hand": (Words, IDS),
    "stem with GELU": (Sound, SOUNDS),
    "nn.TransformerEncoder": (lambda: OfTorch(nn.LayerNorm(WIDTH)), torch.randn(64, 7, 6)),
}


def shaken(model: nn.Module) -> nn.Module:
    """Give every vector and bias values of its own, so that what is left out shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("case", ROTATED)
def test_the_rotated_model_computes_the_same(case: str) -> None:
    make, x = ROTATED[case]
    model = shaken(make()).double().train()
    x = x.double() if x.is_floating_point() else x
    wanted = copy.deepcopy(model).eval()(x)
    rotation = rotate(model, [x[:32], x[32:]])
    assert model.training
    error = float((model.eval()(x) - wanted).detach().abs().max() / wanted.detach().abs().max())
    assert error < (1e-9 if case != "tied head, RMSNorm by hand" else 1e-6)  # which computes at float32 before
    (stream,) = rotation.streams
    assert stream.error < 1e-9
    norms = [model.get_submodule(path) for path in stream.norms]
    assert len(norms) == 5
    assert all(isinstance(norm, nn.RMSNorm) and bool((norm.weight == 1).all()) for norm in norms)


@pytest.mark.parametrize("case", ROTATED)
def test_channels_are_uncorrelated_and_ordered(case: str) -> None:
    make, x = ROTATED[case]
    model = shaken(make()).eval()
    (stream,) = rotate(model, [x]).streams
    seen = list[Tensor]()
    for path in stream.norms:
        model.get_submodule(path).register_forward_hook(lambda _, __, y: seen.append(y.detach().flatten(0, -2)))
    model(x)
    moments = sum((y.double().T @ y.double() for y in seen), torch.zeros(WIDTH, WIDTH, dtype=torch.float64))
    energy = moments.diagonal()
    assert torch.allclose(moments, torch.diag(energy), atol=1e-3 * float(energy.max()))
    assert torch.allclose(energy / energy.sum(), stream.shares, atol=1e-4)
    assert bool((stream.shares.diff() <= 1e-9).all())


@pytest.mark.parametrize("case", ROTATED)
def test_the_width_goes_exactly(case: str) -> None:
    make, x = ROTATED[case]
    model = shaken(make()).eval()
    (stream,) = rotate(model, [x]).streams
    own = [group for group in channel_groups(model, x[:2]) if any(m.parameter in stream.readers for m in group.members)]
    width = next(group for group in own if group.size == WIDTH and group.prunable)
    report = compact(model, Compaction.from_keep(channel_groups(model, x[:2]), {width.name: range(12)}), x[:2])
    assert report.removed == {width.name: (4, WIDTH)}
    assert not report.put_back


@pytest.mark.parametrize("seed", range(3))
def test_the_last_directions_go_when_a_recipe_names_no_criterion(seed: int) -> None:
    """All that is written into the stream lies in twelve of its sixteen directions, whichever these are."""
    torch.manual_seed(seed)
    model: Any = shaken(Vision()).eval()
    twelve = torch.linalg.qr(torch.randn(WIDTH, 12))[0]
    with torch.no_grad():
        for writer in (model.patch, *(layer for block in model.blocks for layer in (block.out, block.down))):
            for parameter in (writer.weight, writer.bias):
                parameter.copy_((twelve @ twelve.T @ parameter.reshape(WIDTH, -1)).view_as(parameter))
        for added in (model.token, model.place):
            added.copy_(added @ twelve @ twelve.T)
    (stream,) = rotate(model, [PICTURES]).streams
    recipe = Recipe(granularity=Channel(), schedule=OneShot(0.25), targets=Targets(include=stream.writers),
                    allocation=Uniform(), count="channels")  # fmt: skip
    pruned = prune(model, recipe, [PICTURES], progress=False)
    assert "Reconstruction" in pruned.chosen_by
    plan = applied_plan(model)
    assert plan is not None
    assert plan.removed["patch.weight"] == {0: (12, 13, 14, 15)}


def test_a_tied_head_gets_a_weight_of_its_own() -> None:
    model = shaken(Words())
    rotate(model, [IDS])
    assert model.head.weight is not model.embedding.weight  # type: ignore[union-attr]


def test_a_matrix_stands_where_no_weight_writes_first() -> None:
    model = shaken(Sound())
    before = model.stem.weight.detach().clone()  # type: ignore[union-attr]
    (stream,) = rotate(model, [SOUNDS]).streams
    assert stream.entrance == "blocks.0"
    assert torch.equal(model.stem.weight, before)  # type: ignore[union-attr]
    assert model.state_dict()["blocks.0.stream_turn.weight"].shape == (WIDTH, WIDTH)
    again = shaken(Sound())
    rotate(again, [SOUNDS])
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(SOUNDS), model.eval()(SOUNDS))
    assert torch.equal(copy.deepcopy(model)(SOUNDS), model(SOUNDS))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "post-norm": (lambda: Vision(is_post=True), PICTURES, r"adds what blocks\.0\.norm\d has normalised.*post-norm"),
    "element-wise": (
        lambda: Sums("tanh"),
        torch.randn(64, 7, 6),
        "tanh in the model's own forward works on the single",
    ),
    "output": (lambda: Sums("output"), torch.randn(64, 7, 6), "norm.*: model output"),
    "nothing": (lambda: nn.Sequential(nn.Linear(6, 4)), torch.randn(64, 6), "no normalisation"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_rotated_is_named(case: str) -> None:
    make, x, text = REFUSED[case]
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GraphError, match=text):
        rotate(model, [x])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_reader_of_the_mean_is_named_and_the_model_stays_as_it_was() -> None:
    model = shaken(OfTorch(None))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CompactionError, match="head reads the stream with its mean"):
        rotate(model, [torch.randn(64, 7, 6)])
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_fails_on_the_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = shaken(Sound()).eval(), nn.RMSNorm.__init__
    before, wanted, calls = copy.deepcopy(model.state_dict()), model(SOUNDS), 0

    def interrupted(self: nn.RMSNorm, *args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:  # five for the proof
            raise KeyboardInterrupt
        made(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.RMSNorm, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rotate(model, [SOUNDS])
    assert before.keys() == model.state_dict().keys()
    assert torch.equal(model(SOUNDS), wanted)
    assert not model.blocks[0]._forward_pre_hooks  # type: ignore[union-attr]


def test_masked_models_and_other_arguments_are_refused() -> None:
    model = Vision()
    with pytest.raises(TypeError, match=r"nn\.Module"):
        rotate("model", [PICTURES])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one batch"):
        rotate(model, [])
    masks.attach(model, ["head.weight"])
    with pytest.raises(PruningError, match="carries masks"):
        rotate(model, [PICTURES])


@pytest.mark.parametrize("turned", [rotate, rotate_heads])
def test_data_that_are_nan_are_refused(turned: Callable[..., object]) -> None:
    model = OfTorch(nn.LayerNorm(WIDTH))
    before = copy.deepcopy(model.state_dict())
    text = r"(gives|enters .*self_attn) is NaN or infinite on the data; nothing was rotated"
    with pytest.raises(NonFiniteError, match=text):
        turned(model, [torch.randn(8, 7, 6), torch.full((8, 7, 6), torch.nan)])
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_normalisation_is_told_by_its_values() -> None:
    norm = shaken(nn.LayerNorm(WIDTH, eps=1e-3))
    affine = Affine.of(norm, WIDTH)
    assert (affine.is_centred, affine.eps) == (True, 1e-3)
    assert torch.allclose(affine.gain.float(), norm.weight)  # type: ignore[arg-type]
    assert torch.allclose(affine.offset.float(), norm.bias, atol=1e-6)  # type: ignore[arg-type]
    hand = shaken(ByHand())
    affine = Affine.of(hand, WIDTH)
    assert not affine.is_centred
    assert not affine.offset.any()
    assert torch.allclose(affine.gain.float(), 1 + hand.weight, atol=1e-5)  # type: ignore[arg-type]
    with pytest.raises(CompactionError, match="in a way that is not known"):
        Affine.of(nn.Softmax(-1), WIDTH)
