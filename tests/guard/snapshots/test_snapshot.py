"""A rollback restores every bit, whatever happened since."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from snapshot_cases import OPTIMIZERS, Counter, bits, case, check_goes_on, form, mask_some, step, twin
from torch import nn
from torch.nn.utils import prune
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, ReduceLROnPlateau, SequentialLR
from torch.optim.swa_utils import AveragedModel

from lightning_prune import compact
from lightning_prune.guard.snapshots import Snapshot
from lightning_prune.model import masks


@pytest.mark.parametrize("seed", range(20))
def test_twenty_rollbacks_are_bit_exact(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    begin = ("dense", "masked", "compact")[seed % 3]
    dtype = torch.bfloat16 if seed % 4 == 3 else torch.float32
    name = list(OPTIMIZERS)[seed % len(OPTIMIZERS)]
    model, optimizer = case(name, dtype, begin)
    before, reference = form(model, optimizer), twin(model, optimizer)
    snapshot = Snapshot.take(model, [optimizer], where=rng.choice(["memory", "disk"]), folder=tmp_path)
    assert form(model, optimizer) == before
    for _ in range(2):
        plan = mask_some(model, optimizer, seed)
        step(model, optimizer, 10)
        is_smaller = rng.random() < 0.7
        if is_smaller:
            compact(model, plan, optimizer=optimizer)
            step(model, optimizer, 11)
        assert form(model, optimizer) != before
        assert snapshot.restore(model, [optimizer]) == is_smaller
        assert form(model, optimizer) == before
        assert all(p.grad is None for p in model.parameters())
        assert all(
            torch.equal(getattr(owner, attr), getattr(owner, attr) * masks.mask_of(owner, attr))
            for _, owner, attr, _ in masks.masked_places(model)
        )
    check_goes_on(model, optimizer, reference)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_over_masks_and_removal(name: str) -> None:
    model, optimizer = case(name, begin="masked")
    before, reference = form(model, optimizer), twin(model, optimizer)
    snapshot = Snapshot.take(model, [optimizer], where="memory")
    plan = mask_some(model, optimizer, 7)
    compact(model, plan, optimizer=optimizer)
    step(model, optimizer, 8)
    masks.fold(model)
    assert snapshot.restore(model, [optimizer])
    assert form(model, optimizer) == before
    check_goes_on(model, optimizer, reference)


def test_state_in_another_type_than_its_parameter_stays_so() -> None:
    model, optimizer = case("AdamW", torch.bfloat16)
    for state in optimizer.state.values():
        state["exp_avg_sq"] = state["exp_avg_sq"].double()
    before = form(model, optimizer)
    snapshot = Snapshot.take(model, [optimizer])
    optimizer.state.clear()
    snapshot.restore(model, [optimizer])
    assert form(model, optimizer) == before


def test_weights_behind_the_mask_and_signed_zeros_keep_their_bits() -> None:
    model = nn.Linear(3, 2)
    masks.attach(model, ["weight"])
    masks.write(model, [("weight", torch.tensor([[True, False, True], [False, True, True]]))])
    model.weight.data[0, 1], model.weight.data[1, 0] = -0.0, 7.0  # type: ignore[union-attr]
    before = bits(model.weight)
    snapshot = Snapshot.take(model, [])
    masks.write(model, [("weight", torch.zeros(2, 3, dtype=torch.bool))])
    snapshot.restore(model, [])
    assert bits(model.weight) == before
    model.bias.data.zero_()
    assert torch.equal(model(torch.eye(3)).T, model.weight * masks.mask_of(model, "weight"))


def test_masks_of_others_and_tied_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    prune.l1_unstructured(model[2], "weight", 0.5)
    masks.attach(model, ["0.weight"])
    before = form(model)
    snapshot = Snapshot.take(model, [])
    masks.write(model, [("0.weight", torch.eye(4, dtype=torch.bool))])
    masks.mask_of(model[2], "weight").zero_()  # type: ignore[operator,union-attr]
    assert not snapshot.restore(model, [])
    assert form(model) == before
    assert model[1].weight is model[0].weight
    masks.detach(model, ["0.weight", "1.weight"])
    masks.attach(model, ["0.weight"], is_structured=True)
    snapshot.restore(model, [])
    assert form(model) == before


def test_channels_last_expanded_empty_and_lazy_tensors() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.register_buffer("row", torch.ones(1).expand(5), persistent=False)
            self.register_buffer("later", None)
            self.register_buffer("none", torch.zeros(0, 3))
            self.lazy = nn.LazyLinear(3)

    model = Odd()
    before = {name: bits(t) for name, t in masks.dense_names(model).items() if not name.startswith("lazy")}
    snapshot = Snapshot.take(model, [])
    model.conv.weight.data = torch.zeros(4, 3, 3, 3)
    model.row = torch.zeros(5)
    model.later = torch.ones(2)
    model.none = torch.ones(2, 3)
    snapshot.restore(model, [])
    after = {name: bits(t) for name, t in masks.dense_names(model).items() if not name.startswith("lazy")}
    # an expanded tensor comes back with memory of its own
    assert {k: v for k, v in after.items() if k != "row"} == {k: v for k, v in before.items() if k != "row"}
    assert torch.equal(model.row, torch.ones(5))
    assert model.later is None


def test_random_generators_go_back() -> None:
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    np.random.normal()  # leaves a second value in reserve

    def draw() -> Any:
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.normal(),
            np.random.rand(3).tolist(),
            torch.rand(3).tolist(),
        )

    snapshot = Snapshot.take(nn.Linear(1, 1), [])
    first = draw()
    assert draw() != first
    for _ in range(2):
        snapshot.restore(nn.Linear(1, 1), [])
        assert draw() == first


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    model = nn.Linear(64, 64).cuda()
    plain, capturable = Adam(model.parameters()), Adam(model.parameters(), capturable=True)

    def train(seed: int) -> None:
        torch.cuda.manual_seed(seed)
        model(torch.randn(4, 64, device="cuda")).sum().backward()
        plain.step()
        capturable.step()

    train(0)
    expected = [p.detach().clone() for p in model.parameters()]
    devices = [{k: v.device.type for k, v in o.state[p].items()} for o in (plain, capturable) for p in o.state]
    snapshot = Snapshot.take(model, [plain, capturable])
    drawn = torch.rand(3, device="cuda")
    train(1)
    capturable.state.clear()
    plain.state.clear()
    snapshot.restore(model, [plain, capturable])
    assert torch.equal(torch.rand(3, device="cuda"), drawn)
    assert all(torch.equal(a, b) for a, b in zip(expected, model.parameters(), strict=True))
    assert [{k: v.device.type for k, v in o.state[p].items()} for o in (plain, capturable) for p in o.state] == devices


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_schedulers_averages_and_other_state(where: Any, tmp_path: Path) -> None:
    model, optimizer = case("SGD")
    other = SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    schedulers: list[Any] = [
        SequentialLR(optimizer, [MultiStepLR(optimizer, [2, 3]), CosineAnnealingLR(optimizer, 9)], [4]),
        ReduceLROnPlateau(other, patience=0),
    ]
    scaler, counter = torch.amp.GradScaler("cpu", init_scale=8.0), Counter()
    average = AveragedModel(model)
    masks.attach(average, ["module.stem.weight"])
    others = {"average": average, "scaler": scaler, "counter": counter}
    scaler.scale(torch.ones(1))

    def everything() -> Any:
        stateful = [one.state_dict() for one in (*schedulers, scaler, counter)]
        return form(model, optimizer, other), form(average), bits(stateful)

    def go_on() -> None:
        mask_some(model, optimizer, 1)
        step(model, optimizer, 5)
        other.step()
        schedulers[0].step()
        schedulers[1].step(1.0)
        masks.write(average, [("module.stem.weight", torch.zeros(8, 2, 3, 3, dtype=torch.bool))])
        average.n_averaged += 1
        scaler.update(4.0)
        counter.seen.append(2)
        counter.total += 1

    before = everything()
    snapshot = Snapshot.take(model, [optimizer, other], schedulers, others, where=where, folder=tmp_path)
    for _ in range(2):
        go_on()
        assert everything() != before
        snapshot.restore(model, [optimizer, other], schedulers, others)
        assert everything() == before


def test_param_group_added_since_stays_without_state() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(first, second)
    optimizer = Adam(first.parameters(), lr=0.1)
    snapshot = Snapshot.take(model, [optimizer])
    optimizer.add_param_group({"params": second.parameters(), "lr": 0.5})
    optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["own"] = 9.0, True
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    snapshot.restore(model, [optimizer])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert "own" not in optimizer.param_groups[0]
    assert not optimizer.state


def test_state_tensors_that_share_memory_keep_or_lose_it_as_before() -> None:
    model = nn.Linear(3, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    table, (weight, bias) = torch.arange(4.0), model.parameters()
    optimizer.state[weight] = {"a": torch.ones(3), "b": torch.zeros(3), "table": table}
    optimizer.state[bias] = {"table": table}
    optimizer.state["run"] = {"k": 3, "sum": torch.ones(2)}  # type: ignore[index]
    expected = bits(optimizer.state[weight]), bits(optimizer.state["run"])  # type: ignore[index]
    snapshot = Snapshot.take(model, [optimizer])
    optimizer.state[weight]["b"] = optimizer.state[weight]["a"].fill_(5)
    table.zero_()
    optimizer.state["run"]["k"] = 4  # type: ignore[index]
    snapshot.restore(model, [optimizer])
    assert (bits(optimizer.state[weight]), bits(optimizer.state["run"])) == expected  # type: ignore[index]
    assert optimizer.state[bias]["table"] is optimizer.state[weight]["table"]


def test_extra_state_of_a_module() -> None:
    class Scaled(nn.Linear):
        scales: list[float]

        def get_extra_state(self) -> Any:
            return self.scales

        def set_extra_state(self, state: Any) -> None:
            self.scales = state

    layer = Scaled(2, 2)
    layer.scales, model = [1.0], nn.Sequential(layer)
    snapshot = Snapshot.take(model, [])
    layer.scales.append(2.0)
    snapshot.restore(model, [])
    assert layer.scales == [1.0]


def test_works_in_inference_mode() -> None:
    model, optimizer = case("SGD")
    before = form(model, optimizer)
    with torch.inference_mode():
        snapshot = Snapshot.take(model, [optimizer])
    step(model, optimizer, 3)
    with torch.inference_mode():
        snapshot.restore(model, [optimizer])
    assert form(model, optimizer) == before
    step(model, optimizer, 3)
