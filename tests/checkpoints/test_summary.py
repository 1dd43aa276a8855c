import copy
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import Trainer
from support import AfterStep, Net, loader, trainer

from lightning_prune import Channel, Element, Linear, OneShot, PruningCallback, Recipe, summarize
from lightning_prune.checkpoints.files import read_checkpoint
from lightning_prune.checkpoints.state import KEY, VERSION, describe
from lightning_prune.checkpoints.summary import summarize_checkpoint
from lightning_prune.errors import CheckpointError
from lightning_prune.model import masks
from lightning_prune.model.summary import Summary


def trained(recipe: Recipe, path: Path, save_at: int | None = None) -> tuple[Net, Summary]:
    """Train for ten steps; the checkpoint is written after some of them, or at the end."""
    model = Net()

    def save(trainer: Trainer, module: Net) -> None:
        if trainer.global_step == save_at:
            trainer.save_checkpoint(path)
            kept.append(summarize(module))

    kept: list[Summary] = []
    fit = trainer(path.parent, PruningCallback(recipe), AfterStep(save))
    fit.fit(model, loader())
    if save_at is None:
        fit.save_checkpoint(path)
    return model, kept[0] if kept else summarize(model)


class Explosive:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code of the file runs",))


def test_masks_count_as_zeros(tmp_path: Path):
    model = Net()
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    masks.attach(model, names)
    masks.write(model, [(name, torch.rand_like(mask.float()) > 0.7) for name, mask in masks.read(model).items()])
    torch.save({"state_dict": model.state_dict(), KEY: describe(model)}, tmp_path / "a.ckpt")
    found = {one.name: one for one in summarize_checkpoint(tmp_path / "a.ckpt").tensors}
    told = {name: mask.numel() - int(mask.sum()) for name, mask in masks.read(model).items()}
    assert {name: found[name].zeros for name in told} == told
    assert all(found[name].is_masked for name in told)
    assert found.keys() == {name for name, _ in [*Net().named_parameters(), *Net().named_buffers()]}


def test_a_run_that_is_under_way(tmp_path: Path):
    recipe = Recipe(granularity=Element(), schedule=Linear(final_sparsity=0.5, begin_step=0, end_step=8, frequency=1))
    summary = trained(recipe, tmp_path / "a.ckpt", save_at=4)[1]
    found = summarize_checkpoint(tmp_path / "a.ckpt")
    assert (found.facts["step"], found.facts["pruning"]) == ("4", "under way at step 4")
    assert "schedule: Linear(" in found.facts["recipe"]
    assert found.facts["removed"] == "no channels"
    parameters = [one for one in found.tensors if one.name in dict(Net().named_parameters())]
    assert sum(one.elements for one in parameters) == summary.parameters
    assert sum(one.zeros for one in parameters) == summary.zeros > 0


def test_removed_channels(tmp_path: Path):
    recipe = Recipe(granularity=Channel(), schedule=OneShot(0.5, begin_step=2))
    summary = trained(recipe, tmp_path / "a.ckpt")[1]
    found = summarize_checkpoint(tmp_path / "a.ckpt")
    assert found.facts["pruning"] == "finished"
    assert "→" in found.facts["removed"]
    assert found.facts["removed"] in str(found)
    left = {one.name: one.left for one in found.tensors}
    layers = {layer.name: layer.left for layer in summary.layers}
    conv = next(one for one in found.tensors if one.name == "conv2.weight")
    assert left["conv2.weight"] == conv.elements / (8 * 8 * 9) < 1
    assert layers["conv1"] == left["conv1.weight"]
    assert (
        sum(one.elements for one in found.tensors if one.name in dict(Net().named_parameters())) == summary.parameters
    )


def test_text(tmp_path: Path):
    torch.save({"weight": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "bias": torch.zeros(1000)}, tmp_path / "a.pt")
    lines = str(summarize_checkpoint(tmp_path / "a.pt")).splitlines()
    assert lines[0] == str(tmp_path / "a.pt")
    assert lines[1].split() == ["pruning", "none", "recorded", "in", "the", "file"]
    assert [line.split() for line in lines[-5:]] == [
        [lines[-5].split()[0]],
        ["weight", "2x2", "4", "50.0%"],
        ["bias", "1000", "1,000", "100.0%"],
        [lines[-2].split()[0]],
        ["in", "all", "1,004", "99.8%"],
    ]


class TestBadFiles:
    def test_pickled_objects_are_named_and_not_read(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        torch.save({"state_dict": {"a": torch.zeros(2)}, "x": Explosive()}, tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match=r"a.ckpt holds a pickled .*print.*it was not read.*--trust"):
            summarize_checkpoint(tmp_path / "a.ckpt")
        assert capsys.readouterr().out == ""
        assert summarize_checkpoint(tmp_path / "a.ckpt", is_trusted=True).elements == 2

    @pytest.mark.parametrize("data", [b"", b"x", b"PK\x03\x04" + bytes(99), pickle.dumps([1]), pickle.dumps({"a": 1})])
    def test_something_else(self, tmp_path: Path, data: bytes):
        (tmp_path / "a.ckpt").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"a.ckpt "):
            summarize_checkpoint(tmp_path / "a.ckpt")

    def test_cut_off(self, tmp_path: Path):
        torch.save({"a": torch.zeros(1000)}, tmp_path / "a.ckpt")
        data = (tmp_path / "a.ckpt").read_bytes()
        for end in range(1, len(data), len(data) // 7):
            (tmp_path / "a.ckpt").write_bytes(data[:end])
            with pytest.raises(CheckpointError, match=r"a.ckpt "):
                read_checkpoint(tmp_path / "a.ckpt")

    def test_mask_of_another_shape(self, tmp_path: Path):
        torch.save({"w_orig": torch.zeros(3), "w_mask": torch.ones(2, dtype=torch.bool)}, tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match=r"the mask of w has shape \(2,\), its weight \(3,\)"):
            summarize_checkpoint(tmp_path / "a.ckpt")

    def test_a_folder_and_nothing(self, tmp_path: Path):
        with pytest.raises(CheckpointError, match="is a folder: name the checkpoint file in it"):
            summarize_checkpoint(tmp_path)
        (tmp_path / ".metadata").touch()
        with pytest.raises(CheckpointError, match="is the folder of a sharded checkpoint: consolidate it"):
            summarize_checkpoint(tmp_path)
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            summarize_checkpoint(tmp_path / "a.ckpt")


class TestFilesOfOthers:
    @pytest.mark.parametrize(
        ("tensor", "zeros"),
        [
            (torch.eye(4).to_sparse(), 12),
            (torch.eye(4).to(torch.float8_e4m3fn), 12),
            (torch.eye(4).to(torch.bfloat16), 12),
            (torch.eye(4).to(torch.complex64), 12),
        ],
        ids=["sparse", "float8", "bfloat16", "complex"],
    )
    def test_every_kind_of_tensor_has_a_row(self, tensor: torch.Tensor, zeros: int, tmp_path: Path) -> None:
        torch.save({"state_dict": {"x": tensor, 3: torch.ones(2)}}, tmp_path / "last.ckpt")
        first, second = summarize_checkpoint(tmp_path / "last.ckpt").tensors
        assert (first.shape, first.elements, first.zeros) == ((4, 4), 16, zeros)
        assert (second.name, second.elements) == ("3", 2)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of what it makes and reads
    def test_so_has_a_quantized_one(self, tmp_path: Path) -> None:
        tensor = torch.quantize_per_tensor(torch.eye(4), 0.5, 0, torch.qint8)
        torch.save({"state_dict": {"x": tensor}}, tmp_path / "last.ckpt")
        assert summarize_checkpoint(tmp_path / "last.ckpt").zeros == 12

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"x": torch.ones(3, device="meta")}, "x is a meta tensor"),
            ({"x": torch.ones(1).expand(2**40)}, "x claims 4,398,046,511,104 bytes and holds 4"),
            ({"x_orig": torch.ones(3), "x_mask": torch.ones(1, device="meta")}, "the mask of x is a meta tensor"),
            ({"x": torch.ones(3), "lightning_prune": {"masks": {"x": 3}}}, "no checkpoint of ours|is a int tensor"),
        ],
    )
    def test_what_has_no_values_is_refused_by_name(self, content: dict[str, Any], message: str, tmp_path: Path) -> None:
        held = {"state_dict": content, "lightning_prune": content.pop("lightning_prune", None)}
        torch.save(held, tmp_path / "last.ckpt")
        with pytest.raises(CheckpointError, match=rf"last.ckpt.*({message})"):
            summarize_checkpoint(tmp_path / "last.ckpt")

    def test_a_zip_that_unpacks_to_much_more_is_not_read(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"x": torch.zeros(2**24)}}, tmp_path / "plain.ckpt")
        with (
            zipfile.ZipFile(tmp_path / "plain.ckpt") as plain,
            zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
        ):
            for name in plain.namelist():
                bomb.writestr(name, plain.read(name))
        summarize_checkpoint(tmp_path / "plain.ckpt")
        with pytest.raises(CheckpointError, match=r"bomb.ckpt has [\d,]+ bytes and unpacks to 67,10\d,\d+: it was not"):
            summarize_checkpoint(tmp_path / "bomb.ckpt")

    def test_a_name_forges_no_row(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"x\ny  1  1\x1b[2J\u202e": torch.ones(2)}}, tmp_path / "last.ckpt")
        shown = str(summarize_checkpoint(tmp_path / "last.ckpt"))
        assert r"x\ny  1  1\x1b[2J\u202e" in shown
        assert "\x1b" not in shown

    @pytest.mark.slow
    def test_mutated_files_raise_no_bare_error(self, tmp_path: Path) -> None:
        """2,000 checkpoints with a value replaced, and as many with bytes changed; seeded."""
        drawn, path = random.Random(18), tmp_path / "last.ckpt"
        torch.save(
            {
                "state_dict": {"a.weight": torch.ones(3, 2), "b_orig": torch.ones(3), "b_mask": torch.ones(3)},
                "epoch": 3,
                "hyper_parameters": {"width": 3},
                KEY: {
                    "version": VERSION,
                    "masks": {"a.weight": torch.ones(3, 2, dtype=torch.bool)},
                    "compaction": '{"format": "lightning_prune.compaction", "version": 2, "shapes": {"a": [3, 2]},'
                    ' "removals": {}, "attributes": {}}',
                    "run": {"is_done": False, "step": 3, "recipes": [{"criterion": "Magnitude"}]},
                },
            },
            path,
        )
        good, data = torch.load(path), path.read_bytes()
        odd = [
            None,
            3,
            -1,
            1e400,
            "x",
            "[" * 10_000,
            b"",
            [],
            {},
            {3: {}},
            True,
            torch.ones(2),
            torch.ones(2).to_sparse(),
        ]
        read = 0
        for _ in range(2000):
            content = copy.deepcopy(good)
            place: Any = content
            while True:
                key = drawn.choice(list(place))
                if not isinstance(place[key], dict) or not place[key] or drawn.random() < 0.2:
                    break
                place = place[key]
            place[key] = drawn.choice(odd)
            torch.save(content, path)
            read += is_read(path)
        for _ in range(2000):
            changed = bytearray(data)
            for _ in range(drawn.randint(1, 20)):
                changed[drawn.randrange(len(data))] = drawn.randrange(256)
            path.write_bytes(changed[: drawn.choice([len(data), drawn.randrange(len(data))])])
            read += is_read(path)
        assert 0 < read < 4000


def is_read(path: Path) -> bool:
    """Whether a file is read and printed; any error but the one that names it goes on."""
    try:
        str(summarize_checkpoint(path))
    except CheckpointError as error:
        if path.name not in str(error):
            raise AssertionError("the error does not name the file") from error
        return False
    return True
