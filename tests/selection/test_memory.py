"""What a program takes of the memory, and the widths that bring it down."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import Apart, computed, images, measured
from lightning_prune import (
    Channel,
    Compaction,
    MACs,
    Memory,
    NoRepair,
    OneShot,
    Recipe,
    Taylor,
    Uniform,
    compact,
    prune,
)
from lightning_prune.run.binding import bind
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.allocation import Candidates
from lightning_prune.selection.costs import widths_within
from lightning_prune.selection.needs import Bound, Need

EXAMPLE = torch.zeros(1, 3, 24, 24)


class Residual(nn.Module):
    """Wide images at first, wide weights at the end, a sum and a concatenation between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.inner, self.outer = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 16, 1)
        self.side, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(24, 48, 3, 2, 1)
        self.last, self.head = nn.Conv2d(48, 64, 3, 2, 1), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 5)."""
        y = self.stem(x)
        y = torch.relu(y + self.outer(torch.relu(self.inner(y))))
        y = torch.relu(self.deep(torch.cat([y, self.side(x)], 1)))
        return self.head(torch.relu(self.last(y)).mean((2, 3)))


def bound(*needs: Need) -> tuple[ChannelUnits, tuple[Bound, ...]]:
    """Return the units and the needs of the network."""
    pruner = bind(Recipe(granularity=Channel(min_share=0.0), need=needs, schedule=OneShot()), Residual(), EXAMPLE)
    assert isinstance(pruner.units, ChannelUnits)
    return pruner.units, pruner.needs


def candidates(units: ChannelUnits, seed: int) -> Candidates:
    """Return made-up scores of the channels."""
    torch.manual_seed(seed)
    scores = {name: torch.rand(size, dtype=torch.float64) for name, size in units.sizes.items()}
    return Candidates(scores, {}, units.sizes, dict.fromkeys(units.sizes, 0), torch.float64)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_what_is_left_is_that_of_the_compact_network() -> None:
    units, (one,) = bound(Memory(250_000))
    random = np.random.default_rng(0)
    assert one.cost.total == pytest.approx(computed(Residual(), EXAMPLE))
    for _ in range(4):
        kept = {name: int(random.integers(1, size + 1)) for name, size in units.sizes.items()}
        model = Residual().eval()
        removed = {name: size - kept[name] for name, size in units.sizes.items()}
        compact(model, Compaction.from_keep(units.found, {n: range(k) for n, k in kept.items() if removed[n]}))
        assert one.cost.left(removed) == pytest.approx(computed(model, EXAMPLE))


@pytest.mark.parametrize("limit", [400_000, 250_000])
def test_the_sum_of_terms_is_the_cost_where_all_groups_lose_the_same_share(limit: int) -> None:
    units, (one,) = bound(Memory(limit))
    widths = {name: list(range(1, size + 1)) for name, size in units.sizes.items()}
    constant, terms = one.cost.terms(widths, limit)
    shares = np.linspace(0, 1, 65)
    gone = [{name: round(float(share) * (size - 1)) for name, size in units.sizes.items()} for share in shares]
    removed = next(each for each in gone if one.cost.left(each) <= limit)
    index = {name: units.sizes[name] - own - 1 for name, own in removed.items()}
    chosen = constant + sum(table[tuple(index[name] for name in key)] for key, table in terms)
    assert chosen == pytest.approx(one.cost.left(removed), rel=0.02)


@pytest.mark.parametrize("limit", [400_000, 300_000, 200_000])
@pytest.mark.parametrize("seed", range(3))
def test_the_widths_meet_the_need_and_leave_little_of_it(limit: int, seed: int) -> None:
    units, needs = bound(Memory(limit))
    removed, _ = widths_within(units, candidates(units, seed), needs, 1.0)
    assert 0.9 * limit < needs[0].cost.left(removed) <= limit


def test_another_need_holds_at_once() -> None:
    units, needs = bound(Memory(300_000), MACs(0.3))
    removed, _ = widths_within(units, candidates(units, 0), needs, 1.0)
    for one in needs:
        assert one.cost.left(removed) <= one.limit * (1 + 1e-9)


def test_a_file_that_is_read_takes_its_weights_twice() -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    weights = 4 * sum(p.numel() for p in net.parameters())
    for is_mapped, least, most in ((True, 0.4, 0.5), (False, 0.9, 1.0)):
        need = Memory(weights // 2, is_mapped=is_mapped) if is_mapped else Memory(weights, is_mapped=False)
        pruner = bind(Recipe(granularity=Channel(), need=need, schedule=OneShot()), net, torch.zeros(1, 8))
        (one,) = pruner.needs
        assert isinstance(pruner.units, ChannelUnits)
        assert (one.cost.total >= 2 * weights) is not is_mapped
        removed, _ = widths_within(pruner.units, candidates(pruner.units, 0), pruner.needs, 1.0)
        assert least * weights < one.cost.left(removed) <= most * weights


@pytest.mark.parametrize("options", [{"criterion": Taylor()}, {"allocation": Uniform()}], ids=["chosen", "uniform"])
def test_a_trained_model_comes_down_to_it(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model, data = Residual().eval(), [(torch.randn(8, 3, 24, 24), torch.randint(5, (8,))) for _ in range(2)]
    recipe = Recipe(granularity=Channel(), need=Memory(300_000), schedule=OneShot(), **options)  # type: ignore[arg-type]
    prune(model, recipe, data, loss=loss, progress=False)
    assert 0.85 * 300_000 < computed(model, EXAMPLE) <= 300_000


def test_what_cannot_be_met_names_the_least_and_what_holds_it() -> None:
    with pytest.raises(ValueError, match=r"158,\d\d\d bytes of memory is the least .* held by addresses of what conv"):
        bound(Memory(1_000))
    with pytest.raises(ValueError, match="as it is: nothing has to be pruned"):
        bound(Memory(10_000_000))


def test_a_network_of_which_it_is_not_known_is_refused() -> None:
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="layer_norm at 0 is none of the operators"):
        bind(Recipe(granularity=Channel(), need=Memory(100), schedule=OneShot()), net, torch.zeros(1, 4))


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "8 MB"])
def test_odd_numbers_are_refused(wrong: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"Memory\.bytes"):
        Memory(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Memory\.is_mapped"):
        Memory(100, is_mapped="yes")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured by /proc")
def test_the_runtime_takes_no_more_than_the_need(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    from lightning_prune.deploy import export, inspect

    torch.manual_seed(0)
    model, x = images().eval(), torch.randn(1, 3, 224, 224)
    assert computed(model, x) > 30e6
    need = Memory(20_000_000)
    recipe = Recipe(granularity=Channel(), need=need, schedule=OneShot(), repair=NoRepair())
    prune(model, recipe, [x], example_inputs=x, progress=False)
    export(model, tmp_path / "a.pte", example_inputs=x)
    told = inspect(tmp_path / "a.pte")["forward"].memory_bytes
    assert told == pytest.approx(computed(model, x), rel=0.01)
    assert told is not None
    assert told <= need.bytes
    running, _ = measured(tmp_path / "a.pte", x)
    assert running <= 1.05 * need.bytes
    assert running == pytest.approx(told, rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured by /proc")
def test_parts_of_a_program_share_what_they_compute_in(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    from lightning_prune.deploy import export, inspect

    model, x = Apart().eval(), torch.randn(1, 3, 224, 224)
    export(model, tmp_path / "a.pte", example_inputs=x)
    told = inspect(tmp_path / "a.pte")["forward"]
    assert len(told.delegates) == 2
    running, _ = measured(tmp_path / "a.pte", x)
    assert running == pytest.approx(told.memory_bytes, rel=0.02)  # a block of 13 MB for each would be 36 % more
