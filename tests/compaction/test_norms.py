"""A width under an RMS norm: weight and eps in plans, fresh models, optimizers, repaired and undone removals."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compaction_cases import trained
from torch import Tensor, nn, optim

from lightning_prune import Channel, NoRepair, OneShot, Recipe, Targets, prune
from lightning_prune.compaction import Compaction, applied_plan, compact
from lightning_prune.errors import CompactionError
from lightning_prune.graph import channel_groups

IDS = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(0))


class Decoder(nn.Module):
    """The MLP half of a block of Llama, between an embedding and a head."""

    def __init__(self, width: int = 12, eps: float | None = 1e-3) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, width), nn.RMSNorm(width, eps=eps)
        self.up, self.down, self.last = nn.Linear(width, 16), nn.Linear(16, width), nn.RMSNorm(width, eps=eps)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.head(self.last(x + self.down(torch.relu(self.up(self.norm(x))))))


def planned(model: nn.Module, left: int) -> Compaction:
    return Compaction.from_keep(channel_groups(model, IDS), {"embedding": range(left)})


def test_weight_and_eps_take_up_another_width() -> None:
    model = trained(Decoder()).double()
    plan, weight = planned(model, 3), model.norm.weight.detach().clone()
    masked = copy.deepcopy(model)
    plan.mask(masked)
    assert compact(model, plan, IDS).errors["float64"] <= 1e-12
    assert (model(IDS) - masked(IDS)).abs().max() <= 1e-12 * masked(IDS).abs().max()
    assert torch.equal(model.norm.weight, weight[:3] * 2)  # the root of 12 / 3
    assert model.norm.eps == model.last.eps == 4e-3
    assert model.norm.normalized_shape == (3,)


@pytest.mark.parametrize("eps", [1e-3, None])
def test_a_fresh_model_takes_the_plan_from_json_and_the_weights(eps: float | None) -> None:
    model = trained(Decoder(eps=eps))
    compact(model, planned(model, 8), IDS)
    compact(model, planned(model, 5), IDS)
    plan = applied_plan(model)
    assert plan is not None
    assert json.loads(plan.to_json())["removals"]["embedding"]["scales"]["norm.weight"] == [-0.5, 0.0]
    fresh: Any = Compaction.from_json(plan.to_json()).rebuild(Decoder(eps=eps))
    fresh.load_state_dict(model.state_dict())
    assert fresh.norm.eps == pytest.approx(model.norm.eps, rel=1e-12)
    torch.testing.assert_close(fresh(IDS), model(IDS), rtol=1e-6, atol=1e-7)


def test_two_removals_are_what_one_would_have_been() -> None:
    twice, once = trained(Decoder()).double(), trained(Decoder()).double()
    compact(twice, planned(twice, 8), IDS)
    compact(twice, planned(twice, 5), IDS)
    compact(once, planned(once, 5), IDS)
    for one, other in zip(twice.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)
    plan = applied_plan(twice)
    assert plan is not None
    assert plan.factors["norm.weight"][0] == pytest.approx(((5 / 12) ** -0.5, 0.0))


OPTIMIZERS: dict[str, tuple[Callable[..., optim.Optimizer], dict[str, Any]]] = {
    "SGD": (optim.SGD, {"momentum": 0.9}),
    "AdamW": (optim.AdamW, {"amsgrad": True}),
    "Adamax": (optim.Adamax, {}),
    "NAdam": (optim.NAdam, {}),
    "RMSprop": (optim.RMSprop, {"centered": True, "momentum": 0.5}),
    "Adagrad": (optim.Adagrad, {}),
    "Adafactor": (optim.Adafactor, {}),
    "ASGD": (optim.ASGD, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_holds_what_the_compact_model_would_have_given_it(name: str) -> None:
    make, options = OPTIMIZERS[name]

    def with_state(model: nn.Module) -> optim.Optimizer:
        optimizer = make(model.parameters(), lr=1e-30, **options)  # so that weights stay as they are
        for step in range(3):
            optimizer.zero_grad()
            model(IDS.roll(step)).square().sum().backward()
            optimizer.step()
        return optimizer

    masked, small = trained(Decoder()).double(), trained(Decoder()).double()
    plan = planned(masked, 5)
    plan.mask(masked)
    compact(small, plan)
    carried, own = with_state(masked), with_state(small)
    compact(masked, plan, optimizer=carried)
    for a, b in zip(masked.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
        for key, value in own.state[b].items():
            if isinstance(value, Tensor) and key in carried.state[a]:
                torch.testing.assert_close(carried.state[a][key], value, rtol=1e-6, atol=1e-12, msg=f"{key} {a.shape}")


def test_a_removal_that_fails_leaves_weight_and_eps() -> None:
    model = trained(Decoder(eps=None))
    plan, before = planned(model, 5), copy.deepcopy(model.state_dict())
    with pytest.raises(CompactionError):
        compact(model, Compaction(plan.shapes, plan.removals, {**plan.attributes, "norm.none": ("norm.weight", 0)}))
    assert model.norm.eps is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_left_takes_over_under_an_rms_norm() -> None:
    torch.manual_seed(0)
    dense = Decoder(24).eval()
    with torch.no_grad():  # twelve channels say all: the others are copies
        dense.embedding.weight[:, 12:] = dense.embedding.weight[:, :12]
        dense.down.weight[12:], dense.down.bias[12:] = dense.down.weight[:12], dense.down.bias[:12]
    data = [torch.randint(11, (16, 5)) for _ in range(8)]
    errors = {}
    for repair in (None, "repaired"):
        model = copy.deepcopy(dense)
        options: dict[str, Any] = {} if repair else {"repair": NoRepair()}
        targets = Targets(include=("*", "embedding.weight"))
        recipe = Recipe(granularity=Channel(), schedule=OneShot(0.4), targets=targets, **options)
        prune(model, recipe, data, progress=False)
        assert model.norm.normalized_shape[0] < 24
        with torch.no_grad():
            errors[repair] = float((model(IDS) - dense(IDS)).square().mean())
    assert errors["repaired"] < 0.5 * errors[None]
