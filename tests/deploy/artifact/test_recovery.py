"""Processes that die between two renames, and two that write at once: the old pair or the new one, no more."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_prune.deploy.artifact import _recovery, files
from lightning_prune.deploy.artifact._recovery import complete
from lightning_prune.deploy.artifact.files import RECORD, replaced, staged
from lightning_prune.deploy.artifact.manifest import sha256_of, to_text
from lightning_prune.documents import beside
from lightning_prune.errors import ExportError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


def forked(function: Callable[[], object]) -> int:
    """Run a function in a fork and return how that ended: an exit code, or minus a signal."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def export(path: Path, text: str, external: bool = False) -> None:
    """Write a program, weights and a manifest as an export does."""
    with staged(path, external) as place:
        place.program.write_text(text)
        if place.data is not None:
            place.data.write_text(text)
        place.manifest.write_text(to_text({"format": 1, "program": text, "sha256": sha256_of(place.program)}))
        place.publish()


def bundle(folder: Path, text: str) -> None:
    with replaced(folder) as place:
        (place.building / "a").write_text(text)
        (place.building / "b").write_text(text)
        place.publish()


def dying(function: Callable[[], object], call: int) -> Callable[[], object]:
    """Return a function that does the same and is killed at a call that changes what stands in a folder."""

    def run() -> object:
        count = 0

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def called(*arguments: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return called

        for name in ("replace", "rename", "link", "unlink", "mkdir", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        files._exchanged = counted(files._exchanged)  # type: ignore[assignment]
        return function()

    return run


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("has_older", [True, False])
def test_killed_at_any_call_the_pair_is_of_one_export(tmp_path: Path, has_older: bool, external: bool):
    path, ends = tmp_path / "m.pte", set[str]()
    code = -1
    for call in range(1, 40):
        for name in os.listdir(tmp_path):
            (tmp_path / name).unlink()
        if has_older:
            export(path, "old", external)
        code = forked(dying(lambda: export(path, "new", external), call))
        complete(path.with_suffix(".json"))
        names = [".json", ".pte", *([".ptd"] if external else [])]
        held = {s: path.with_suffix(s).read_text() for s in names if path.with_suffix(s).exists()}
        texts = {json.loads(text)["program"] if s == ".json" else text for s, text in held.items()}
        assert len(texts) <= 1, (call, held)
        assert not held or len(held) == len(names), (call, held)
        ends |= texts
        export(path, "last", external)
        assert sorted(os.listdir(tmp_path)) == sorted(path.with_suffix(s).name for s in names)
        if code == 0:
            break
    assert code == 0
    assert ends == ({"old", "new"} if has_older else {"new"})


@pytest.mark.parametrize("exchanges", [True, False])
def test_killed_at_any_call_a_folder_is_the_old_or_the_new(
    tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch
):
    if not exchanges:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    folder, ends = tmp_path / "app", set[str]()
    code = -1
    for call in range(1, 60):
        shutil.rmtree(folder, ignore_errors=True)
        bundle(folder, "old")
        code = forked(dying(lambda: bundle(folder, "new"), call))
        if exchanges:
            assert folder.exists()  # whoever looks never sees none
        with replaced(folder):  # the next call restores what it finds
            texts = {(folder / name).read_text() for name in ("a", "b")}
        assert len(texts) == 1, call
        ends |= texts
        assert os.listdir(tmp_path) == ["app"]
        assert sorted(os.listdir(folder)) == sorted(["a", "b", RECORD])
        if code == 0:
            break
    assert code == 0
    assert ends == {"old", "new"}


def test_two_processes_to_one_path(tmp_path: Path):
    children = []
    for text in ("one", "other"):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                for _ in range(50):
                    export(tmp_path / "m.pte", text)
                    bundle(tmp_path / "app", text)
                code = 0
            finally:
                os._exit(code)
    assert [os.waitpid(number, 0)[1] for number in children] == [0, 0]
    text = (tmp_path / "m.pte").read_text()
    assert json.loads((tmp_path / "m.json").read_text())["program"] == text
    assert sorted(os.listdir(tmp_path)) == ["app", "m.json", "m.pte"]
    assert (tmp_path / "app" / "a").read_text() == (tmp_path / "app" / "b").read_text()


def test_a_file_that_is_added_while_an_export_runs_stays(tmp_path: Path):
    bundle(tmp_path / "app", "old")
    with replaced(tmp_path / "app") as place:
        (place.building / "a").write_text("new")
        (tmp_path / "app" / "thesis.tex").touch()
        with pytest.raises(ExportError, match=r"added or changed since the export \(thesis.tex\)"):
            place.publish()
    assert (tmp_path / "app" / "thesis.tex").exists()
    assert (tmp_path / "app" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["app"]


def test_also_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bundle(tmp_path / "app", "old")
    exchanged = files._exchanged

    def late(one: Path, other: Path) -> bool:
        (tmp_path / "app" / "thesis.tex").touch()
        return exchanged(one, other)

    monkeypatch.setattr(files, "_exchanged", late)
    with replaced(tmp_path / "app") as place:
        if not exchanged(place.building, place.folder) or not exchanged(place.building, place.folder):
            pytest.skip("this file system exchanges no folders")
        with pytest.raises(ExportError, match=rf"{tmp_path / 'app'} has files that were added"):
            place.publish()
    assert (tmp_path / "app" / "thesis.tex").exists()
    assert (tmp_path / "app" / "b").read_text() == "old"


@pytest.mark.parametrize("suffix", [".pte", ".json", ".ptd", ""])
def test_what_no_file_can_replace_is_said_by_name(tmp_path: Path, suffix: str):
    place = (tmp_path / "m").with_suffix(suffix)
    kinds: dict[str, Callable[[], None]] = {
        "a FIFO": lambda: os.mkfifo(place),
        "a device": lambda: place.symlink_to("/dev/null"),
        "a link to nothing": lambda: place.symlink_to(tmp_path / "nothing"),
    }
    for words, make in kinds.items():
        make()
        with pytest.raises(ExportError, match=f"{place} is {words}"):
            bundle(place, "x") if suffix == "" else export(tmp_path / "m.pte", "x", external=True)
        assert os.listdir(tmp_path) == [place.name]
        place.unlink()


def test_files_of_the_living_and_of_other_machines_stay(tmp_path: Path):
    living = beside(tmp_path / "m.pte")
    parts = living.name.split("-")
    foreign = living.with_name(".m.pte.00000000-" + "-".join(parts[1:]).replace(str(os.getpid()), "999999", 1))
    reused = living.with_name("-".join([*parts[:2], "1", parts[3]]))  # its number, but another start
    for file in (living, foreign, reused):
        file.touch()
    export(tmp_path / "m.pte", "x")
    assert sorted(os.listdir(tmp_path)) == sorted([living.name, foreign.name, "m.json", "m.pte"])


def test_of_two_long_names_that_begin_alike_each_has_its_own(tmp_path: Path):
    one, other = (tmp_path / ("a" * 160 + end) for end in ("1.pte", "2.pte"))
    export(other, "old")
    code = -1
    for call in range(1, 40):
        code = forked(dying(lambda: export(one, "new"), call))
        complete(other.with_suffix(".json"))
        export(other, "old")
        assert other.read_text() == "old"
        assert json.loads(other.with_suffix(".json").read_text())["program"] == "old"
        if code == 0:
            break
    assert code == 0
    assert one.read_text() == "new"


def test_a_folder_that_another_process_keeps_locked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fcntl

    export(tmp_path / "m.pte", "old")
    bundle(tmp_path / "app", "old")
    monkeypatch.setattr(_recovery, "_PATIENCE", 0.1)
    handle = os.open(tmp_path, os.O_RDONLY)  # another one locks as another process does
    fcntl.flock(handle, fcntl.LOCK_EX)
    for write in (lambda: export(tmp_path / "m.pte", "new"), lambda: bundle(tmp_path / "app", "new")):
        with pytest.raises(ExportError, match=rf"another process has locked the folder {tmp_path} for 0.1 s"):
            write()
    os.close(handle)
    assert sorted(os.listdir(tmp_path)) == ["app", "m.json", "m.pte"]
    assert (tmp_path / "m.pte").read_text() == (tmp_path / "app" / "a").read_text() == "old"
    export(tmp_path / "m.pte", "new")
