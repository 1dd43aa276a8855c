"""Where a snapshot lies, what refuses it, and shards: what cannot be kept or put back changes nothing."""

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import file_limit, on_ranks
from snapshot_cases import Counter, bits, case, form, mask_some, step
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import MultiStepLR

from lightning_prune.errors import SnapshotError
from lightning_prune.guard.snapshots import Snapshot, available_memory
from lightning_prune.guard.snapshots.storage import StateFile
from lightning_prune.model import masks


class TestStorage:
    def test_the_file_is_read_without_unpickling(self, tmp_path: Path) -> None:
        value = {"weight": torch.ones(3), "own": Path("a"), "nested": [torch.zeros(2), {"rate": 0.1}], 3: None}
        file = StateFile(value, tmp_path)
        assert [bool((x == y).all()) for x, y in zip(torch.load(file.path, weights_only=True), (1, 0), strict=True)]
        found = file.read()
        assert torch.equal(found.pop("weight"), torch.ones(3))
        assert torch.equal(found["nested"].pop(0), torch.zeros(2))
        assert found == {"own": Path("a"), "nested": [{"rate": 0.1}], 3: None}

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
            monkeypatch.setattr("lightning_prune.guard.snapshots.snapshot.available_memory", lambda: available)  # noqa: B023
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
