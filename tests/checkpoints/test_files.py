"""Errors of ``lightning_prune.load`` name the file and what is wrong with it."""

import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import SAFELY
from support import Net, loader, trainer
from torch import nn

from lightning_prune import Channel, OneShot, PruningCallback, PruningMixin, Recipe, load
from lightning_prune.checkpoints.state import KEY
from lightning_prune.checkpoints.summary import summarize_checkpoint
from lightning_prune.errors import CheckpointError
from lightning_prune.model.example import example_of


class Mixed(PruningMixin, Net):
    """The same network in a class with the mixin."""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    run = trainer(folder, PruningCallback(Recipe(schedule=OneShot(0.5, 2), granularity=Channel())))
    run.fit(Net(), loader())
    run.save_checkpoint(folder / "good.ckpt")
    return folder / "good.ckpt"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"hello, I am no checkpoint", "a.ckpt cannot be read: "),
        ([1, 2], "a.ckpt holds a list, not a checkpoint"),
        ({"a": 1}, "a.ckpt holds no checkpoint of Lightning's, which has a state_dict"),
        (
            Net().state_dict(),
            r"a.ckpt holds no checkpoint .* but a state: .* model.load_state_dict\(torch.load\(path\)\)",
        ),
        ({"state_dict": Net().state_dict()}, r'but a state: .*torch.load\(path\)\["state_dict"\]\)'),
    ],
    ids=["garbage", "list", "dict", "state", "state in a dict"],
)
def test_something_else_than_a_checkpoint(tmp_path: Path, content: Any, why: str) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=why):
        load(Net, path, **SAFELY)


def test_a_file_that_is_cut_off_and_a_folder(pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.ckpt").write_bytes(pruned.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"cut.ckpt cannot be read: "):
        load(Net, tmp_path / "cut.ckpt", **SAFELY)
    with pytest.raises(CheckpointError, match="is a folder: name the checkpoint file in it"):
        load(Net, tmp_path, **SAFELY)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda entry: "yes", "under 'lightning_prune' is damaged, got 'yes'"),
        (lambda entry: {**entry, "version": "new"}, "under 'lightning_prune' is damaged"),
        (lambda entry: {**entry, "compaction": "{broken"}, "plan of removals is damaged: .*take an earlier"),
        (lambda entry: {**entry, "compaction": 3}, "plan of removals is damaged: .*take an earlier"),
        (lambda entry: {**entry, "masks": [3]}, "under 'lightning_prune' is damaged"),
        (lambda entry: {**entry, "masks": {"conv1.weight": 3}}, "under 'lightning_prune' is damaged"),
        (lambda entry: {**entry, "example": {"args": ()}}, "under 'lightning_prune' is damaged"),
    ],
    ids=["text", "version", "plan", "plan of another type", "masks", "mask", "example"],
)
@pytest.mark.parametrize("kind", [Net, Mixed])
def test_what_it_says_of_pruning_is_damaged(
    pruned: Path, tmp_path: Path, kind: type[Net], change: Callable[[Any], Any], why: str
) -> None:
    checkpoint = torch.load(pruned, weights_only=True)
    checkpoint[KEY] = change(checkpoint[KEY])
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=re.compile(why, re.DOTALL)):
        load(kind, tmp_path / "a.ckpt", **SAFELY)


class Explosive:
    """Makes a value by a call, as nothing that a state dict holds is made."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.made = call, args

    def __reduce__(self) -> Any:
        return self.made


def read_by_load(path: Path) -> object:
    return load(Net, path, **SAFELY)


def read_by_resume(path: Path) -> object:
    return trainer(path.parent, PruningCallback(Recipe(schedule=OneShot(0.5, 2)))).fit(
        Net(), loader(), ckpt_path=path, **SAFELY
    )


@pytest.mark.parametrize("read", [read_by_load, read_by_resume, summarize_checkpoint])
class TestLargerThanTheFile:
    def test_a_zip_that_unpacks_to_more(self, pruned: Path, tmp_path: Path, read: Callable[[Path], object]) -> None:
        checkpoint = torch.load(pruned, weights_only=True)
        checkpoint["more"] = torch.zeros(2**24)
        torch.save(checkpoint, tmp_path / "plain.ckpt")
        with (
            zipfile.ZipFile(tmp_path / "plain.ckpt") as plain,
            zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
        ):
            for name in plain.namelist():
                bomb.writestr(name, plain.read(name))
        with pytest.raises(
            CheckpointError, match=r"a.ckpt has [\d,]+ bytes and unpacks to 67,1\d\d,\d+: it was not read"
        ):
            read(tmp_path / "a.ckpt")

    @pytest.mark.parametrize(
        "change",
        [
            lambda entry: entry["masks"].update({"conv2.weight": torch.ones(1, dtype=torch.bool).expand(2**42)}),
            lambda entry: entry.update(other=[{"x": torch.ones(1).expand(2**40)}]),
        ],
        ids=["mask", "anything"],
    )
    def test_strides_that_make_terabytes_of_a_byte(
        self, pruned: Path, tmp_path: Path, read: Callable[[Path], object], change: Callable[[Any], None]
    ) -> None:
        checkpoint = torch.load(pruned, weights_only=True)
        change(checkpoint[KEY])
        torch.save(checkpoint, tmp_path / "a.ckpt")
        with pytest.raises(
            CheckpointError, match=r"a.ckpt: lightning_prune.* claims 4,398,046,511,104 bytes and holds"
        ):
            read(tmp_path / "a.ckpt")

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no limit holds")
    def test_tensors_that_the_file_does_not_hold(
        self, pruned: Path, tmp_path: Path, read: Callable[[Path], object]
    ) -> None:
        checkpoint = torch.load(pruned, weights_only=True)
        torch.save(checkpoint | {"more": Explosive(torch.Tensor, 2**25)}, tmp_path / "a.ckpt")
        with pytest.raises(
            CheckpointError, match=r"a.ckpt has [\d,]+ bytes, and its tensors 134,\d+,\d+: it is damaged"
        ):
            read(tmp_path / "a.ckpt")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no limit holds")
def test_a_pickle_that_takes_much_more_than_its_file(tmp_path: Path) -> None:
    held = {"state_dict": {"x": torch.ones(2)}, "more": Explosive(bytearray, 2**31)}
    torch.save(held, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a.ckpt takes more than 268,435,456 bytes to read: it was not"):
        summarize_checkpoint(tmp_path / "a.ckpt")


def test_a_class_without_the_call(pruned: Path) -> None:
    with pytest.raises(TypeError, match=r"got <class '.*Linear'>: let a plain module .* inside lightning_prune.adop"):
        load(nn.Linear, pruned)  # type: ignore[arg-type]


def test_errors_of_the_class_are_its_own(pruned: Path) -> None:
    class Picky(Net):
        def __init__(self) -> None:
            raise TypeError("not today")

    with pytest.raises(TypeError, match="not today"):
        load(Picky, pruned, **SAFELY)


@pytest.mark.parametrize("kind", [Net, Mixed])
def test_the_example_of_the_file_is_the_models(pruned: Path, tmp_path: Path, kind: type[Net]) -> None:
    class Bare(kind):
        def __init__(self) -> None:
            super().__init__()
            self.example_input_array = None

    checkpoint = torch.load(pruned, weights_only=True)
    checkpoint[KEY]["example"] = {"args": (torch.zeros(1, 1, 8, 8),), "kwargs": {}}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    for call in (lambda: load(Bare, tmp_path / "a.ckpt", **SAFELY), *mixed_calls(Bare, tmp_path / "a.ckpt")):
        example = example_of(call())
        assert example is not None
        assert example.args[0].shape == (1, 1, 8, 8)


def mixed_calls(kind: type[Any], path: Path) -> list[Callable[[], Any]]:
    return [lambda: kind.load_from_checkpoint(path, **SAFELY)] if issubclass(kind, PruningMixin) else []
