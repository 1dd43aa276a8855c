"""Every call that writes, whole, ended at seeded moments: the old files or the new ones, and nothing more.

A fork counts the calls that it makes to the file system, and is ended at one of them, or a moment after it: SIGKILL,
SIGTERM, Ctrl-C, and an alarm, which ends it within whatever it does then.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, Small
from lightning.pytorch.strategies import SingleDeviceStrategy
from packages import ModelCheckpoint
from processes import alone
from study_cases import accuracy, batches
from support import Net, loader, trainer
from torch import nn

from lightning_prune import Channel, PruningCallback, Recipe
from lightning_prune.checkpoints.state import restore
from lightning_prune.checkpoints.summary import summarize_checkpoint
from lightning_prune.cli._options import save
from lightning_prune.deploy import XNNPACK, export, export_android, export_ios, load_manifest
from lightning_prune.deploy.artifact import files
from lightning_prune.deploy.artifact.files import RECORD, replaced, staged
from lightning_prune.deploy.artifact.manifest import sha256_of, to_text
from lightning_prune.documents import scratch, whole
from lightning_prune.guard.snapshots.storage import StateFile
from lightning_prune.schedules import OneShot
from lightning_prune.selection.cells import Cell, Kernel, Point
from lightning_prune.selection.latency import LatencyTable
from lightning_prune.study import sensitivity
from lightning_prune.study.report import Report, widths
from lightning_prune.trainer._files import CheckpointFiles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]
SIZE = 20_000
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
CALLS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}


def small(text: str) -> Small:
    torch.manual_seed(ord(text))
    return Small()


def begins_again(folder: Path) -> None:
    """Begin the next export to a file, which fails."""
    with pytest.raises(ZeroDivisionError), staged(folder / "m.pte"):
        raise ZeroDivisionError


def builds_again(folder: Path) -> None:
    """Begin the next export to a folder, which fails."""
    with pytest.raises(ZeroDivisionError), replaced(folder / "app"):
        raise ZeroDivisionError


def writes_again(folder: Path) -> None:
    """Begin the next call that writes a file, which fails."""
    with pytest.raises(ZeroDivisionError), whole(folder / "last.ckpt"):
        raise ZeroDivisionError


def stand_in(folder: Path, text: str) -> None:
    """Put a program and weights in place as an export does."""
    from benchmarks.mutated import MANIFEST  # it makes a nested tensor, of which torch warns

    with staged(folder / "m.pte", external_weights=True) as place:
        assert place.data is not None
        for file in (place.program, place.data):
            file.write_text(text * SIZE)
        facts = {"sha256": sha256_of(place.program), "size_bytes": SIZE}
        data = [{"file": "m.ptd", "sha256": sha256_of(place.data), "size_bytes": SIZE}]
        place.manifest.write_text(to_text({**MANIFEST, **facts, "data": data}))
        place.publish()


def folder_of(folder: Path, text: str) -> None:
    """Put a folder in place as the bundles do."""
    with replaced(folder / "app") as place:
        for name in ("a", "b"):
            (place.building / name).write_text(text * SIZE)
        place.publish()


def pair(folder: Path) -> object:
    """Return what tells a program, after what a reader of it does."""
    path = folder / "m.pte"
    manifest = load_manifest(path)
    assert manifest["sha256"] == sha256_of(path)
    assert [data["sha256"] for data in manifest["data"]] == [sha256_of(ptd) for ptd in folder.glob("*.ptd")]
    return manifest["sha256"]


def bundle(folder: Path) -> object:
    record = json.loads((folder / "app" / RECORD).read_text())
    written = [path for path in (folder / "app").rglob("*") if path.is_file() and path.name != RECORD]
    assert record == {path.relative_to(folder / "app").as_posix(): sha256_of(path) for path in written}
    for path in (folder / "app").rglob("*.pte"):
        assert load_manifest(path)["sha256"] == sha256_of(path)
    return record


def measured(text: str) -> LatencyTable:
    point = Point(((4, 4),), float(ord(text)), 0.001)
    cell = Cell("linear to 1x*", (Kernel("point", 1.0, 1.0, 1.0),), (point,) * 200)
    return LatencyTable("a phone", "executorch 1", "xnnpack", 1, "thread", 30, {"linear": cell}, (), {})


def curve(folder: Path, text: str) -> None:
    torch.manual_seed(0)
    sensitivity(Net(), batches(), metric=accuracy, levels=(0.25, 0.75), path=folder / "curve.json")


def opened(folder: Path) -> None:
    """Leave none of the points of a curve, so that a call measures them again, one after the other."""
    path = folder / "curve.json"
    if path.exists():
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "metrics": {name: [] for name in document["metrics"]}}))


def begun(folder: Path) -> object:
    """Return nothing of a curve that is a beginning of the whole one: the old file is one with a point less."""
    document = json.loads((folder / "curve.json").read_text())
    values = [value for each in document["metrics"].values() for value in each]
    assert document["levels"] == [0.25, 0.75]
    assert all(isinstance(value, float) for value in values)
    return None


def fit(folder: Path, text: str) -> None:
    """Fit with a checkpoint of one name after every step, and the pruned model at the end."""
    torch.manual_seed(ord(text))
    steps = ModelCheckpoint(folder, "last", save_top_k=1, every_n_train_steps=1, enable_version_counter=False)
    pruning = PruningCallback(Recipe(granularity=Channel(), schedule=OneShot(0.5, begin_step=2)), verbose=False)
    trainer(folder.parent, pruning, steps, max_epochs=1).fit(Net(), loader(4))


def checkpoint(folder: Path) -> object:
    """Return nothing of a checkpoint that a model takes whole: each step's is another."""
    content = torch.load(folder / "last.ckpt")
    restore(Net(), content)
    assert content["global_step"] in range(1, 5)
    restore(Net(), torch.load(folder / "pruned.ckpt"))
    return None


def written(folder: Path, text: str) -> None:
    """Write a checkpoint as a Trainer of a PruningCallback does."""
    files = CheckpointFiles(SingleDeviceStrategy())
    files.save_checkpoint({"state_dict": {"x": torch.full((SIZE,), ord(text))}}, folder / "last.ckpt")


def saved(folder: Path, text: str) -> None:
    save(nn.Linear(256, ord(text)), folder / "pruned.pt")


def snapshot(folder: Path, text: str) -> None:
    """A snapshot goes with its fit, and so do folders for a while."""
    file = StateFile({"weight": torch.zeros(100_000)}, folder)
    with scratch(folder) as place:
        (place / "m.pte").write_text(text * 100_000)
        file.read()
    file.remove()


@dataclass(frozen=True)
class Writer:
    """A call that writes.

    Args:
        write: into a folder, what belongs to a text.
        look: at the files; fails unless they are whole, and returns what tells those of one text.
        names: of the files.
        points: at which it is ended.
        following: the next call; None: the same.
        before: what is done before each.
    """

    write: Callable[[Path, str], object]
    look: Callable[[Path], object]
    names: tuple[str, ...]
    points: int
    following: Callable[[Path], object] | None = None
    before: Callable[[Path], object] = lambda folder: None


def plain(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).read_bytes()


WHOLE: Mapping[str, Writer] = {
    "export": Writer(
        lambda folder, text: export(small(text), folder / "m.pte", example_inputs=EXAMPLE),
        pair, ("m.json", "m.pte"), 4, begins_again,
    ),
    "export, weights apart": Writer(
        lambda folder, text: export(small(text), folder / "m.pte", example_inputs=EXAMPLE, external_weights=True),
        pair, ("m.json", "m.pte", "m.ptd"), 4, begins_again,
    ),
    "Android": Writer(
        lambda folder, text: export_android(small(text), folder / "app", example_inputs=EXAMPLE),
        bundle, ("app",), 4, builds_again,
    ),
    "iOS": Writer(
        lambda folder, text: export_ios(small(text), folder / "app", backend=XNNPACK(), example_inputs=EXAMPLE),
        bundle, ("app",), 4, builds_again,
    ),
}  # fmt: skip
WRITERS: Mapping[str, Writer] = {
    **WHOLE,
    "program": Writer(stand_in, pair, ("m.json", "m.pte", "m.ptd"), 20, begins_again),
    "folder": Writer(folder_of, bundle, ("app",), 20, builds_again),
    "checkpoint": Writer(
        written, lambda folder: int(torch.load(folder / "last.ckpt")["state_dict"]["x"].unique()), ("last.ckpt",), 20
    ),
    "checkpoint of a command": Writer(
        saved, lambda folder: summarize_checkpoint(folder / "pruned.pt").elements, ("pruned.pt",), 20
    ),
    "fit": Writer(fit, checkpoint, ("last.ckpt", "pruned.ckpt"), 8, writes_again),
    "table": Writer(lambda folder, text: measured(text).save(folder / "t.json"), plain("t.json"), ("t.json",), 20),
    "curve": Writer(curve, begun, ("curve.json",), 20, before=opened),
    "report": Writer(
        lambda folder, text: Report(models={text: nn.Linear(4, 4)}, title=text).save(folder / "report.html"),
        plain("report.html"), ("report.html",), 20,
    ),
    "picture": Writer(
        lambda folder, text: widths(nn.Linear(4, 8), nn.Linear(4, ord(text))).save(folder / "widths.svg"),
        plain("widths.svg"), ("widths.svg",), 20,
    ),
    "snapshot": Writer(snapshot, lambda folder: None, (), 20),
}  # fmt: skip
POINTS = sum(writer.points for writer in WRITERS.values())


def forked(write: Callable[[], object], folder: Path, count: Callable[[int], object]) -> tuple[int, int]:
    """Let a fork write to a folder, and tell before each of its calls to the file system which it is.

    Returns:
        how it ended, and the calls.
    """
    receiver, sender = os.pipe()
    number = os.fork()
    if number == 0:
        code, calls, is_counting = 1, 0, False

        def call() -> None:
            nonlocal calls, is_counting
            if not is_counting and threading.current_thread() is threading.main_thread():
                calls, is_counting = calls + 1, True
                try:
                    count(calls)
                finally:
                    is_counting = False

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            return lambda *arguments: (call(), real(*arguments))[1]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event in CALLS or (event == "open" and str(arguments[0]).startswith(str(folder))):
                call()

        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for ends in (signal.SIGTERM, signal.SIGALRM):
                signal.signal(ends, signal.SIG_DFL)
            sys.addaudithook(hook)
            os.fsync, files._exchanged = counted(os.fsync), counted(files._exchanged)  # type: ignore[assignment]
            write()
            code = 0
        except (KeyboardInterrupt, SystemExit):  # Lightning makes the one of the other
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            os.write(sender, calls.to_bytes(4, "big"))
            os._exit(code)
    os.close(sender)
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    calls = int.from_bytes(os.read(receiver, 4), "big")
    os.close(receiver)
    return code, calls


def ending(at: int, sent: int, later: float) -> Callable[[int], None]:
    """Return what ends a fork at one of its calls."""

    def count(calls: int) -> None:
        if calls == at and sent == signal.SIGALRM:
            signal.setitimer(signal.ITIMER_REAL, later)
        elif calls == at:
            os.kill(os.getpid(), sent)

    return count


def end_at_points(name: str, folder: Path) -> None:
    writer, drawn = WRITERS[name], random.Random(name)
    seen, dirty, calls = list[object](), 0, 0
    for text in "ab":  # over nothing, and over a's
        writer.before(folder)
        code, calls = forked(lambda text=text: writer.write(folder, text), folder, lambda calls: None)
        assert code == 0
        seen.append(writer.look(folder))
        assert sorted(os.listdir(folder)) == sorted(writer.names)
    assert calls > 5
    stands = 1
    for point in range(writer.points):
        text, at, sent = "ab"[1 - stands], drawn.randint(1, calls), SIGNALS[point % 4]
        writer.before(folder)
        later = drawn.choice([1e-5, 1e-4, 1e-3, 1e-2])
        code, _ = forked(lambda text=text: writer.write(folder, text), folder, ending(at, sent, later))
        # an alarm may come too late, and Lightning ends by itself on SIGTERM
        assert code in (-sent, 130, 0), (point, at, sent, code)
        now = writer.look(folder)
        assert now in seen, (point, at, sent)
        stands = stands if seen[0] == seen[1] else seen.index(now)
        left = sorted(os.listdir(folder))
        assert left == sorted(writer.names) or sent != signal.SIGINT, left
        dirty += left != sorted(writer.names)
        if writer.following is None:
            writer.write(folder, "ab"[stands])
        else:
            writer.following(folder)
        assert sorted(os.listdir(folder)) == sorted(writer.names), (point, at, sent)
        assert writer.look(folder) == seen[stands]
    assert dirty or writer.points < 10, "none came within a call: the moments test nothing"


@pytest.mark.parametrize("name", WRITERS)
def test_ended_at_seeded_moments(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if name == "fit":  # autograd's threads do not survive a fork: nothing may have trained before
        assert alone(end_at_points, name, folder, timeout=240) == 0
    else:
        end_at_points(name, folder)


@pytest.mark.parametrize("name", WHOLE)
def test_what_a_kill_would_leave_at_each_call_of_a_whole_export(name: str, tmp_path: Path) -> None:
    writer, folder = WHOLE[name], tmp_path / "out"
    folder.mkdir()
    writer.write(folder, "a")
    seen = [writer.look(folder)]
    # neither signal lets anything run, so that the folder is then what it was at the call
    code, calls = forked(
        lambda: writer.write(folder, "b"), folder, lambda at: shutil.copytree(folder, tmp_path / str(at), symlinks=True)
    )
    assert code == 0
    assert calls > 20
    seen.append(writer.look(folder))
    ends, dirty = [], 0
    for at in range(1, calls + 1):
        dirty += sorted(os.listdir(tmp_path / str(at))) != sorted(writer.names)
        ends.append(seen.index(writer.look(tmp_path / str(at))))
        assert writer.following is not None
        writer.following(tmp_path / str(at))
        assert sorted(os.listdir(tmp_path / str(at))) == sorted(writer.names), at
    assert ends == sorted(ends)
    assert set(ends) == {0, 1}
    assert dirty > 5


def test_there_are_204() -> None:
    assert POINTS == 204
