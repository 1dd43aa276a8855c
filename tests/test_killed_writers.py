"""Every kind of writing call, ended by a signal at seeded moments: the old file or the new one, and nothing more."""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from lightning_prune.deploy.artifact._recovery import complete
from lightning_prune.deploy.artifact.files import RECORD, replaced, staged
from lightning_prune.deploy.artifact.manifest import sha256_of, to_text
from lightning_prune.documents import Form, whole
from lightning_prune.study.report import widths
from lightning_prune.trainer._files import CheckpointFiles

FORM = Form("lightning_prune.example", 1, "example")
SIZE = 20_000


def export(folder: Path, text: str) -> None:
    with staged(folder / "m.pte") as place:
        place.program.write_text(text * SIZE)
        place.manifest.write_text(to_text({"format": 1, "program": text, "sha256": sha256_of(place.program)}))
        place.publish()


def bundle(folder: Path, text: str) -> None:
    with replaced(folder / "app") as place:
        for name in ("a", "b"):
            (place.building / name).write_text(text * SIZE)
        place.publish()


def document(folder: Path, text: str) -> None:
    """A table, a curve, a history: all are written so."""
    with whole(folder / "curve.json") as written:
        written.write_text(FORM.write({"values": [text] * SIZE}))


def picture(folder: Path, text: str) -> None:
    widths(nn.Linear(4, 8), nn.Linear(4, 6 if text == "a" else 5)).save(folder / "widths.svg")


def checkpoint(folder: Path, text: str) -> None:
    files = CheckpointFiles(SingleDeviceStrategy())
    files.save_checkpoint({"state_dict": {"x": torch.full((SIZE,), ord(text))}}, folder / "last.ckpt")


def read(folder: Path) -> None:
    """Fail unless each file is whole."""
    complete(folder / "m.json")
    if (folder / "m.json").exists():
        assert json.loads((folder / "m.json").read_text())["sha256"] == sha256_of(folder / "m.pte")
    if (folder / "app").exists():
        assert (folder / "app" / "a").read_text() == (folder / "app" / "b").read_text()
    if (folder / "curve.json").exists():
        assert len(set(FORM.read((folder / "curve.json").read_text())["values"])) == 1
    if (folder / "widths.svg").exists():
        assert (folder / "widths.svg").read_text().endswith("</svg>\n")
    if (folder / "last.ckpt").exists():
        assert len(torch.load(folder / "last.ckpt")["state_dict"]["x"].unique()) == 1


WRITERS: Mapping[str, tuple[Callable[[Path, str], None], list[str]]] = {
    "export": (export, ["m.json", "m.pte"]),
    "bundle": (bundle, ["app"]),
    "document": (document, ["curve.json"]),
    "picture": (picture, ["widths.svg"]),
    "checkpoint": (checkpoint, ["last.ckpt"]),
}
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
POINTS = 40


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("name", WRITERS)
def test_killed_at_seeded_moments(name: str, tmp_path: Path) -> None:
    write, names = WRITERS[name]
    drawn = random.Random(name)
    write(tmp_path, "a")  # what is imported at the first call is in the forks
    dirty = 0
    for point in range(POINTS):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # none before the fork can take it
        number = os.fork()
        if number == 0:
            code = 1
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
                while True:
                    for text in "ab":
                        write(tmp_path, text)
            except KeyboardInterrupt:
                code = 130
            finally:
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        time.sleep(drawn.uniform(0.005, 0.1))
        os.kill(number, sent := SIGNALS[point % 3])
        code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        assert code in (-sent, 130), (point, code)
        read(tmp_path)
        dirty += not set(os.listdir(tmp_path)) <= set(names)
        write(tmp_path, "a")  # the next call sweeps what a kill left
        assert sorted(os.listdir(tmp_path)) == names, point
        read(tmp_path)
        if name == "bundle":
            assert sorted(os.listdir(tmp_path / "app")) == sorted(["a", "b", RECORD])
    assert dirty, "no signal came within a call: the moments test nothing"
