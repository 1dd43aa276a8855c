"""A compact model comes back from whatever it was written to, bit for bit: weights, sizes held in attributes, plan."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from compaction_cases import RESIDUAL_INPUT, Residual, half_of, trained
from packages import SAFELY, L, ModelCheckpoint
from support import trainer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset
from zoo_networks import GroupedShuffleNet, MobileInverted
from zoo_sequences import Gru, Lstm

from lightning_prune import Compaction, PruningMixin, channel_groups, compact
from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.compaction import applied_plan


class Block(nn.Module):
    """A transformer block: heads of grouped queries, an MLP, and a scale for each channel."""

    def __init__(self, width: int = 16, heads: int = 8, key_heads: int = 4, head_dim: int = 4) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_dim = heads, key_heads, head_dim
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.query = nn.Linear(width, heads * head_dim)
        self.key, self.value = (nn.Linear(width, key_heads * head_dim) for _ in range(2))
        self.project, self.scale = nn.Linear(heads * head_dim, width), nn.Parameter(torch.ones(width))
        self.mlp = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        query = self.query(y).view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)
        key, value = (
            layer(y).view(*x.shape[:2], self.key_heads, self.head_dim).transpose(1, 2)
            for layer in (self.key, self.value)
        )
        attended = scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2).flatten(2)
        x = x + self.scale * self.project(attended)
        return x + self.mlp(self.norms[1](x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.blocks, self.head = nn.Linear(6, 16), nn.Sequential(Block(), Block()), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.enter(x)))


class Shared(nn.Module):
    """A layer called twice, a weight with two names, and an embedding that is the last layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.twice = nn.Embedding(20, 16), nn.Linear(16, 16)
        self.up, self.again, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.again.weight = self.up.weight
        self.last = nn.Linear(16, 20, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.twice(self.embedding(x)))))
        return self.last(self.down(torch.relu(self.up(x)) + torch.relu(self.again(x))))


@dataclass(frozen=True)
class Case:
    """How a network is built, and an input of it."""

    make: Callable[[], nn.Module]
    example: Tensor


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


TOKENS = torch.randint(0, 20, (4, 7), generator=torch.Generator().manual_seed(1))
CASES = {
    "residual, depthwise, grouped": Case(Residual, RESIDUAL_INPUT),
    "inverted residual": Case(MobileInverted, drawn(2, 3, 8, 8)),
    "grouped with channel shuffle": Case(GroupedShuffleNet, drawn(2, 3, 8, 8)),
    "lstm": Case(Lstm, TOKENS),
    "gru": Case(Gru, drawn(4, 3, 8)),
    "transformer": Case(Transformer, drawn(2, 5, 6)),
    "shared weights": Case(Shared, TOKENS),
}


class Lit(PruningMixin, L.LightningModule):
    """Any of the networks, dense as it is built."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = CASES[case].make()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self(batch[0]).square().mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self(batch[0]).square().mean())

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def batches(case: str) -> DataLoader[Any]:
    return DataLoader(TensorDataset(CASES[case].example), 2)


@cache
def plans(case: str) -> tuple[str, str]:
    """The plans, as JSON, that take half of every channel group away once and a second time."""
    model, example = trained(Lit(case)), CASES[case].example
    found = []
    for seed in range(2):
        groups = channel_groups(model, example)
        report = compact(model, Compaction.from_keep(groups, half_of(groups, seed)), example)
        assert sum(removed for removed, _ in report.removed.values()) > 0
        plan = applied_plan(model)
        assert plan is not None
        found.append(plan.to_json())
    return found[0], found[1]


def compacted(case: str, times: int) -> Lit:
    """A model that lost channels once or twice."""
    return trained(Compaction.from_json(plans(case)[times - 1]).rebuild(Lit(case)), seed=times)


def look(model: nn.Module, case: str) -> list[Tensor]:
    with torch.no_grad():
        return tree_leaves(model.eval()(CASES[case].example))


def names(model: nn.Module) -> list[list[str]]:
    """All names of each parameter: which are shared."""
    named = list(model.named_parameters(remove_duplicate=False))
    return [[name for name, other in named if other is one] for _, one in model.named_parameters()]


def same(loaded: nn.Module, model: nn.Module, case: str) -> bool:
    """Whether everything is the same: outputs, every tensor, sizes in attributes, the plan."""
    states = loaded.state_dict(), model.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert repr(loaded) == repr(model)
    assert names(loaded) == names(model)
    assert applied_plan(loaded) == applied_plan(model)
    return all(map(torch.equal, look(loaded, case), look(model, case)))


def saved(model: Lit, folder: Path, **options: Any) -> Path:
    run = trainer(folder)
    run.strategy.connect(model)
    run.save_checkpoint(folder / "compact.ckpt", **options)
    return folder / "compact.ckpt"


cases = pytest.mark.parametrize("case", CASES)
times = pytest.mark.parametrize("times", [1, 2])


@cases
@times
@pytest.mark.parametrize("save_weights_only", [False, True])
def test_load_from_checkpoint(tmp_path: Path, case: str, times: int, save_weights_only: bool) -> None:
    model = compacted(case, times)
    path = saved(model, tmp_path, weights_only=save_weights_only)
    assert same(Lit.load_from_checkpoint(path, **SAFELY), model, case)


@cases
@times
@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_trainer_with_ckpt_path(tmp_path: Path, case: str, times: int, verb: str) -> None:
    model, fresh = compacted(case, times), Lit(case)
    path = saved(model, tmp_path)
    ran = getattr(trainer(tmp_path), verb)(fresh, batches(case), ckpt_path=path, weights_only=True)
    assert same(fresh, model, case)
    if verb == "predict":
        with torch.no_grad():
            expected = [model.eval()(batch) for (batch,) in batches(case)]
        assert all(map(torch.equal, ran, expected))


@cases
@times
def test_fit_goes_on_where_it_was(tmp_path: Path, case: str, times: int) -> None:
    model = compacted(case, times)
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, saving, max_epochs=3).fit(model, batches(case))
    fresh = Lit(case)
    again = trainer(tmp_path, ModelCheckpoint(tmp_path / "again"), max_epochs=3)
    again.fit(fresh, batches(case), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert same(fresh, model, case)


@cases
@times
def test_torch_load_and_rebuild(tmp_path: Path, case: str, times: int) -> None:
    model = compacted(case, times)
    checkpoint = torch.load(saved(model, tmp_path), weights_only=True)
    plan = Compaction.from_json(checkpoint[checkpoints.KEY]["compaction"])
    fresh = plan.rebuild(Lit(case))
    fresh.load_state_dict(checkpoint["state_dict"])
    assert same(fresh, model, case)


@cases
@times
def test_safetensors_with_the_plan_in_its_metadata(tmp_path: Path, case: str, times: int) -> None:
    safetensors = pytest.importorskip("safetensors", reason="comes with transformers, of the extra 'dev'")
    from safetensors.torch import load_file, save_file

    model, path = compacted(case, times), tmp_path / "compact.safetensors"
    first = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}
    state = {name: tensor for name, tensor in model.state_dict().items() if first[tensor.data_ptr()] == name}
    plan = applied_plan(model)
    assert plan is not None
    save_file(state, path, metadata={"plan": plan.to_json()})
    with safetensors.safe_open(path, "pt") as file:
        fresh = Compaction.from_json(file.metadata()["plan"]).rebuild(Lit(case))
    missing, unexpected = fresh.load_state_dict(load_file(path), strict=False)
    assert set(missing) == set(model.state_dict()) - set(state)
    assert not unexpected
    assert same(fresh, model, case)


@cases
def test_a_loaded_model_can_be_compacted_again_and_reloaded(tmp_path: Path, case: str) -> None:
    once = Lit.load_from_checkpoint(saved(compacted(case, 1), tmp_path))
    groups = channel_groups(once, CASES[case].example)
    compact(once, Compaction.from_keep(groups, half_of(groups, 1)), CASES[case].example)
    plan = applied_plan(once)
    assert plan is not None
    assert plan.shapes_after == Compaction.from_json(plans(case)[1]).shapes_after
    assert same(Lit.load_from_checkpoint(saved(once, tmp_path)), once, case)


@cases
def test_the_checkpoint_of_another_compaction_takes_its_place(tmp_path: Path, case: str) -> None:
    first, second = compacted(case, 1), compacted(case, 2)
    for folder, model in (("one", first), ("two", second)):
        (tmp_path / folder).mkdir()
        saved(model, tmp_path / folder)
    model = Lit(case)
    for folder, expected in (("two", second), ("one", first), ("two", second)):
        trainer(tmp_path).validate(model, batches(case), ckpt_path=tmp_path / folder / "compact.ckpt", verbose=False)
        assert same(model, expected, case)
