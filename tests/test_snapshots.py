"""A rollback restores every bit, whatever happened since; a snapshot that cannot be kept is refused."""

import copy
import io
import pickle
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compaction_cases import RESIDUAL_INPUT, Residual, half_of, trained
from processes import on_ranks
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim import LBFGS, SGD, Adafactor, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, ReduceLROnPlateau, SequentialLR
from torch.optim.swa_utils import AveragedModel

from lightning_prune import Compaction, channel_groups, compact, masks
from lightning_prune.compaction import applied_plan
from lightning_prune.errors import SnapshotError
from lightning_prune.optimizer_surgery import zero_state
from lightning_prune.snapshots import Snapshot, available_memory

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda p: AdamW(p, lr=0.01, amsgrad=True),
    "AdamW, tensor lr": lambda p: AdamW(p, lr=torch.tensor(0.01), capturable=False, foreach=False),
    "fused Adam": lambda p: Adam(p, lr=0.01, fused=True),
    "SGD": lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "LBFGS": lambda p: LBFGS(p, lr=0.1, max_iter=3, history_size=4),
    "Adafactor": lambda p: Adafactor(p, lr=0.01),
}

GROUPS: dict[Any, Any] = {}
"""Channel groups by the shapes of the parameters; tracing takes a second."""


def bits(value: Any) -> Any:
    """Everything about a value that can be compared: bytes, types, memory formats, order."""
    if isinstance(value, Tensor):
        raw = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return type(value), value.dtype, tuple(value.shape), value.stride(), raw
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [bits(item) for item in value]
    return repr(value)


def form(model: nn.Module, *optimizers: Optimizer) -> Any:
    """All that a rollback promises of a model and its optimizers, Parameter objects included."""
    parameters = [id(p) for p in model.parameters()]
    states = [
        ([bits(o.state[p]) for p in group["params"]], bits({k: v for k, v in group.items() if k != "params"}))
        for o in optimizers
        for group in o.param_groups
    ]
    sizes = {n: {k: v for k, v in m.__dict__.items() if isinstance(v, int | tuple)} for n, m in model.named_modules()}
    tensors = bits(dict(sorted(masks.dense_names(model).items()))), bits(masks.read(model))
    return parameters, tensors, set(masks.structured_names(model)), applied_plan(model), sizes, states


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    dtype = next(model.parameters()).dtype
    images = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.train()(images).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]


def mask_some(model: nn.Module, optimizer: Optimizer, seed: int) -> Any:
    """An event: the channels of a random half are masked out; returns the plan that removes them."""
    shapes = tuple(p.shape for p in model.parameters())
    if shapes not in GROUPS:
        GROUPS[shapes] = channel_groups(copy.deepcopy(model).float(), RESIDUAL_INPUT)
    plan = Compaction.from_keep(GROUPS[shapes], half_of(GROUPS[shapes], seed))
    masks.attach(model, [n for n in masks.dense_parameters(model) if n in plan.removed], is_structured=True)
    gone = {name: torch.ones_like(mask) for name, mask in masks.read(model).items()}
    for name, axes in plan.removed.items():
        for axis, indices in axes.items():
            if name in gone:
                gone[name].index_fill_(axis, torch.tensor(indices), False)
    masks.write(model, gone.items())
    zero_state(optimizer, masks.masks_by_parameter(model))
    return plan


def case(name: str, dtype: torch.dtype = torch.float32, begin: str = "dense") -> tuple[nn.Module, Optimizer]:
    model = trained(Residual()).to(dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    for seed in range(2):
        step(model, optimizer, seed)
    if begin != "dense":
        plan = mask_some(model, optimizer, 3)
        if begin == "compact":
            compact(model, plan, optimizer=optimizer)
        step(model, optimizer, 4)
    return model, optimizer


def twin(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """A copy that trains on as if nothing had happened."""
    copied, its = copy.deepcopy((model, optimizer))
    if isinstance(its, LBFGS):  # torch leaves these out of a copy
        its._params, its._numel_cache = its.param_groups[0]["params"], None
    return copied, its


def check_goes_on(model: nn.Module, optimizer: Optimizer, reference: tuple[nn.Module, Optimizer]) -> None:
    for seed in range(3):
        step(model, optimizer, 20 + seed)
        step(*reference, 20 + seed)
    (_, *left), (_, *right) = form(model, optimizer), form(*reference)
    assert left == right


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
            torch.equal(getattr(owner, attr), masks.original_of(owner, attr) * masks.mask_of(owner, attr))
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
    model.weight_orig.data[0, 1], model.weight_orig.data[1, 0] = -0.0, 7.0  # type: ignore[union-attr]
    before = bits(model.weight_orig)
    snapshot = Snapshot.take(model, [])
    masks.write(model, [("weight", torch.zeros(2, 3, dtype=torch.bool))])
    snapshot.restore(model, [])
    assert bits(model.weight_orig) == before
    assert torch.equal(model.weight, model.weight_orig * model.weight_mask)  # type: ignore[operator]


def test_masks_of_others_and_tied_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    prune.l1_unstructured(model[2], "weight", 0.5)
    masks.attach(model, ["0.weight"])
    before = form(model)
    snapshot = Snapshot.take(model, [])
    masks.write(model, [("0.weight", torch.eye(4, dtype=torch.bool))])
    model[2].weight_mask.zero_()  # type: ignore[operator,union-attr]
    assert not snapshot.restore(model, [])
    assert form(model) == before
    assert model[1].weight_orig is model[0].weight_orig
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


class Counter:
    """A run of its own: plain values and a tensor that it goes on writing into."""

    def __init__(self) -> None:
        self.seen, self.total = [1], torch.ones(2)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen, self.total = state_dict["seen"], state_dict["total"]


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


class TestStorage:
    @pytest.mark.parametrize("where", ["memory", "disk"])
    def test_checkpoint_holds_it(self, where: Any, tmp_path: Path) -> None:
        model, optimizer = case("LBFGS", begin="compact")
        scheduler = MultiStepLR(optimizer, [1, 2])
        before = form(model, optimizer)
        snapshot = Snapshot.take(model, [optimizer], [scheduler], where=where, folder=tmp_path)
        buffer = io.BytesIO()
        torch.save(snapshot.state_dict(), buffer)
        step(model, optimizer, 5)
        mask_some(model, optimizer, 6)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        loaded = Snapshot.from_state_dict(state, where=where, folder=tmp_path)
        state["modules"][""]["tensors"]["stem.weight"].zero_()
        loaded.restore(model, [optimizer], [scheduler])
        assert form(model, optimizer) == before

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
    def test_copies_live_on_their_own(self, copied: Any, tmp_path: Path) -> None:
        model = nn.Linear(2, 2)
        before = form(model)
        snapshot = Snapshot.take(model, [], where="disk", folder=tmp_path)
        twin = copied(snapshot)
        snapshot.drop()
        model.weight.data.zero_()
        twin.restore(model, [])
        assert form(model) == before

    def test_file_is_private_and_goes(self, tmp_path: Path) -> None:
        snapshot = Snapshot.take(nn.Linear(2, 2), [], where="disk", folder=tmp_path)
        assert snapshot.is_on_disk
        (file,) = tmp_path.iterdir()
        assert file.stat().st_mode & 0o077 == 0
        snapshot.drop()
        snapshot.drop()
        assert not list(tmp_path.iterdir())
        with pytest.raises(SnapshotError, match="was dropped; take a new one"):
            snapshot.restore(nn.Linear(2, 2), [])
        snapshot = Snapshot.take(nn.Linear(2, 2), [], where="disk", folder=tmp_path)
        del snapshot
        assert not list(tmp_path.iterdir())

    def test_view_of_large_memory_is_stored_alone(self, tmp_path: Path) -> None:
        model = nn.Module()
        model.register_buffer("part", torch.zeros(1_000_000)[:10])
        snapshot = Snapshot.take(model, [], where="disk", folder=tmp_path)
        assert next(tmp_path.iterdir()).stat().st_size < 100_000
        snapshot.drop()

    @pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
    def test_damaged_file_changes_nothing(self, harm: str, tmp_path: Path) -> None:
        model, optimizer = case("AdamW")
        snapshot = Snapshot.take(model, [optimizer], where="disk", folder=tmp_path)
        (file,) = tmp_path.iterdir()
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        if harm == "remove":
            file.unlink()
        else:
            file.write_bytes(content if harm == "flip" else content[: len(content) // 2])
        step(model, optimizer, 5)
        now = form(model, optimizer)
        with pytest.raises(SnapshotError, match="go on without it"):
            snapshot.restore(model, [optimizer])
        assert form(model, optimizer) == now

    def test_auto_takes_the_disk_for_what_is_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = nn.Linear(10, 10, bias=False)
        assert 1 << 20 < available_memory() < 1 << 50
        for available, is_large in ((4 * 400 - 1, True), (1 << 20, False)):
            monkeypatch.setattr("lightning_prune.snapshots.snapshot.available_memory", lambda: available)  # noqa: B023
            snapshot = Snapshot.take(model, [], folder=tmp_path)
            # the generators weigh more than this model
            assert snapshot.is_on_disk == (available < 4 * 400 or is_large)

    @pytest.mark.parametrize("fault", ["full", "no folder"])
    def test_unwritable_disk_changes_nothing(self, fault: str, tmp_path: Path) -> None:
        model, optimizer = case("AdamW")
        now = form(model, optimizer)
        folder = tmp_path / "gone" if fault == "no folder" else tmp_path
        with file_limit(4096), pytest.raises(SnapshotError, match=r"a snapshot of [\d,]+ bytes cannot be stored: .+"):
            Snapshot.take(model, [optimizer], where="disk", folder=folder)
        assert form(model, optimizer) == now
        assert not list(tmp_path.iterdir())


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestRefused:
    def test_other_parts(self) -> None:
        model = nn.Linear(2, 2)
        optimizer = SGD(model.parameters(), lr=0.1)
        snapshot = Snapshot.take(model, [optimizer])
        fewer = SGD([model.weight], lr=0.1)
        with pytest.raises(SnapshotError, match="the number of optimizers differ: 1 in the snapshot, 0 now"):
            snapshot.restore(model, [])
        with pytest.raises(SnapshotError, match="the parameters of SGD differ: 2 in the snapshot, 1 now"):
            snapshot.restore(model, [fewer])
        with pytest.raises(SnapshotError, match="the number of schedulers differ"):
            snapshot.restore(model, [optimizer], [MultiStepLR(optimizer, [1])])
        with pytest.raises(
            SnapshotError, match=r"the names of other objects differ: \[\] in the snapshot, \['c'\] now"
        ):
            snapshot.restore(model, [optimizer], [], {"c": Counter()})
        with pytest.raises(SnapshotError, match="the snapshot holds weight, which Sequential does not have"):
            snapshot.restore(nn.Sequential(model), [optimizer])

    def test_newer_version(self) -> None:
        state = Snapshot.take(nn.Linear(1, 1), []).state_dict() | {"version": 2}
        with pytest.raises(SnapshotError, match="version 2, this package reads up to 1; upgrade it"):
            Snapshot.from_state_dict(state)


@pytest.fixture
def mesh() -> Iterator[Any]:
    distributed = pytest.importorskip("torch.distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_sharded_tensors_are_held_as_local_shards(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    masks.attach(model, ["0.weight"])
    fully_shard(model, mesh=mesh)
    optimizer = AdamW(model.parameters(), lr=0.1)

    def train() -> None:
        optimizer.zero_grad()
        model(torch.ones(3, 6)).sum().backward()
        optimizer.step()

    def now() -> Any:
        state = [v for values in optimizer.state.values() for v in values.values()]
        whole = [t.full_tensor() if isinstance(t, DTensor) else t for t in (*model.parameters(), *state)]
        return [type(t) for t in state], bits(whole), bits(masks.read(model))

    train()
    before = now()
    snapshot = Snapshot.take(model, [optimizer])
    assert not any(isinstance(t, DTensor) for t in snapshot.state_dict()["modules"][""]["tensors"].values())
    for forget in (False, True):
        masks.read(model)["0.weight"][0] = False
        train()
        if forget:
            optimizer.state.clear()
        snapshot.restore(model, [optimizer])
        assert now() == before
    train()
    state = copy.deepcopy(snapshot.state_dict())
    state["modules"][""]["tensors"]["0.weight"] = torch.zeros(4, 6)
    with pytest.raises(SnapshotError, match="resume on as many processes as it was taken on"):
        Snapshot.from_state_dict(state).restore(model, [optimizer])


def _roll_back_on_a_rank() -> tuple[bool, bool, int]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    masks.attach(model, ["0.weight"])
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = AdamW(model.parameters(), lr=0.1)

    def train(seed: int) -> None:
        optimizer.zero_grad()
        model(torch.randn(3, 6, generator=torch.Generator().manual_seed(2 * seed + rank))).sum().backward()
        optimizer.step()

    def now() -> Any:
        state: list[Any] = [v for values in optimizer.state.values() for v in values.values()]
        tensors: list[Any] = [*model.parameters(), *state]
        whole = [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
        return bits(whole), bits(masks.read(model))

    train(0)
    before, snapshot = now(), Snapshot.take(model, [optimizer])
    held = snapshot.state_dict()["modules"][""]["tensors"]["0.weight"]
    masks.read(model)["0.weight"][0] = False
    train(1)
    after = now()
    optimizer.state.clear()
    snapshot.restore(model, [optimizer])
    train(2)
    snapshot.restore(model, [optimizer])
    found = after != before, now() == before, held.shape[0]
    torch.distributed.destroy_process_group()
    return found


@pytest.mark.slow
def test_shards_on_two_ranks_go_back() -> None:
    assert on_ranks(_roll_back_on_a_rank, 2) == [(True, True, 5), (True, True, 4)]
