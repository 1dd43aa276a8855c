"""The buffers that a forward changes are seen and put back, in whatever way it writes them."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import Compaction, channel_groups, compact
from lightning_prune.model.state import kept_state
from lightning_prune.model.summary import summarize

X = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))


class Writes(nn.Module):
    """Two buffers, one of which a function writes."""

    past: Tensor

    def __init__(self, write: Callable[["Writes", Tensor], object]):
        super().__init__()
        self.write = write
        self.register_buffer("fixed", torch.ones(4))
        self.register_buffer("past", torch.full((1, 4), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.past
        self.write(self, y)
        return y


def _by_data(model: Writes, y: Tensor) -> None:
    model.past.data = y


WAYS = {
    "copy_": lambda m, y: m.past.copy_(y),
    "slice": lambda m, y: m.past.__setitem__((slice(None), slice(0, 2)), y[:, :2]),
    "add_": lambda m, y: m.past.add_(y),
    "new": lambda m, y: setattr(m, "past", y),
    "the same values": lambda m, y: m.past.copy_(m.past.clone()),
    "data": _by_data,
    "data in place": lambda m, y: m.past.data.copy_(y),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_forward_writes_is_seen_and_put_back(way: str):
    model = Writes(WAYS[way])
    own = model.past
    with kept_state(model) as changed:
        assert changed() == ()
        model(X)
        assert changed() == ("past",)
    assert model.past is own
    assert torch.equal(own, torch.full((1, 4), 2.0))


def test_an_error_puts_the_state_back_too():
    model = Writes(WAYS["add_"])

    def fail() -> None:
        with kept_state(model):
            model(X)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(model.past, torch.full((1, 4), 2.0))


class Stream(nn.Module):
    """A convolution that sees its last frames again, a running average that begins at 2."""

    past: Tensor
    mean: Tensor

    def __init__(self):
        super().__init__()
        self.i, self.c, self.o = nn.Linear(4, 8), nn.Conv1d(8, 8, 3), nn.Linear(8, 2)
        self.register_buffer("past", torch.zeros(1, 8, 2))
        self.register_buffer("mean", torch.full((1, 8), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.cat([self.past, self.i(x).relu().unsqueeze(2)], 2)
        self.past.copy_(frames[:, :, 1:])
        y = self.c(frames)[:, :, 0].relu()
        self.mean.copy_(self.mean * 0.9 + y * 0.1)
        return self.o(self.mean)


class Assigned(Stream):
    """The same, written by assignments."""

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.cat([self.past, self.i(x).relu().unsqueeze(2)], 2)
        self.past = frames[:, :, 1:]
        y = self.c(frames)[:, :, 0].relu()
        self.mean = self.mean * 0.9 + y * 0.1
        return self.o(self.mean)


class Cache(nn.Module):
    """Attention over a cache of two heads of keys and values, one position at a time."""

    keys: Tensor
    values: Tensor

    def __init__(self, heads: int = 4, width: int = 4):
        super().__init__()
        self.width = width
        self.q, self.k, self.v = (nn.Linear(4, heads * width) for _ in range(3))
        self.o = nn.Linear(heads * width, 2)
        self.register_buffer("keys", torch.zeros(1, heads, 8, width))
        self.register_buffer("values", torch.zeros(1, heads, 8, width))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        q, k, v = (each(x).view(1, 1, -1, self.width).transpose(1, 2) for each in (self.q, self.k, self.v))
        self.keys.index_copy_(2, position, k)
        self.values[:, :, position] = v
        y = (q @ self.keys.transpose(2, 3)).softmax(-1) @ self.values
        return self.o(y.transpose(1, 2).flatten(2))


class Ring(nn.Module):
    """The last eight frames, the oldest overwritten."""

    ring: Tensor

    def __init__(self):
        super().__init__()
        self.i, self.o = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("ring", torch.zeros(8, 8))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        h = self.i(x).relu()
        self.ring.scatter_(0, position.unsqueeze(1).expand_as(h), h)
        return self.o(self.ring.mean(0, keepdim=True))


def _steps(kind: type[nn.Module], count: int) -> list[tuple[Tensor, ...]]:
    draw = torch.Generator().manual_seed(1)
    drawn = [torch.randn(1, 4, generator=draw, dtype=torch.float64) for _ in range(count)]
    return [(x, torch.tensor([i % 8])) if kind in (Cache, Ring) else (x,) for i, x in enumerate(drawn)]


@pytest.mark.parametrize("kind", [Stream, Assigned, Cache, Ring])
def test_half_of_every_channel_group_leaves_the_state_with_its_channels(kind: type[nn.Module]):
    torch.manual_seed(0)
    model = kind().eval().double()
    steps = _steps(kind, 24)
    groups = channel_groups(model, steps[0])
    plan = Compaction.from_keep(groups, {g.name: range(g.size // 2) for g in groups if g.prunable})
    masked = copy.deepcopy(model)
    plan.mask(masked)
    before = {name: buffer.shape for name, buffer in model.named_buffers()}
    compact(model, plan, steps[0])
    with torch.no_grad():
        for step in steps:
            assert (model(*step) - masked(*step)).abs().max() < 1e-12
    for name, buffer in model.named_buffers():
        assert buffer.shape[1] == before[name][1] // 2, name


@pytest.mark.parametrize("kind", [Stream, Assigned])
def test_the_state_is_listed(kind: type[nn.Module]):
    state = ["past (1, 8, 2) float32, first zeros", "mean (1, 8) float32, first 2 throughout"]
    assert list(map(str, summarize(kind(), X).state)) == state
    assert list(map(str, channel_groups(kind(), X).state)) == state
    for told in (summarize(kind(), X), channel_groups(kind(), X)):
        assert str(told).endswith("\nstate: ".join(["", *state]))


def test_what_is_only_read_is_no_state():
    model = Writes(WAYS["slice"])
    assert [each.name for each in channel_groups(model, X).state] == ["past"]
    model = Writes(lambda m, y: (m.past * 2).add_(y))
    assert channel_groups(model, X).state == summarize(model, X).state == ()
    assert channel_groups(nn.Sequential(nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8)).eval(), torch.zeros(2, 4, 3)).state == ()


@pytest.mark.parametrize("kind", [Stream, Assigned, Cache, Ring])
def test_looking_at_a_model_leaves_its_state(kind: type[nn.Module]):
    model = kind().eval()
    step = tuple(x.float() if x.is_floating_point() else x for x in _steps(kind, 1)[0])
    first = {name: buffer.clone() for name, buffer in model.named_buffers()}
    channel_groups(model, step)
    summarize(model, step)
    groups = channel_groups(model, step)
    compact(copied := copy.deepcopy(model), Compaction.from_keep(groups, {}), step)
    for name, value in first.items():
        assert torch.equal(model.get_buffer(name), value), name
        assert torch.equal(copied.get_buffer(name), value), name
