import json
import os
from pathlib import Path

import pytest

from lightning_prune.deploy.artifact.files import Staged, final, staged, writing
from lightning_prune.deploy.artifact.manifest import to_text
from lightning_prune.errors import ExportError


def written(files: Staged, text: str) -> Staged:
    files.program.write_text(text)
    files.manifest.write_text(to_text({"format": 1, "program": text}))
    return files


def contents(folder: Path) -> dict[str, str]:
    return {
        p.name: json.loads(p.read_text())["program"] if p.suffix == ".json" else p.read_text() for p in folder.iterdir()
    }


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with staged(tmp_path / "m.pte") as files:
        written(files, "old").publish()
    return tmp_path / "m.pte"


def test_both_appear(old: Path):
    assert contents(old.parent) == {"m.pte": "old", "m.json": "old"}


def test_both_are_replaced(old: Path):
    with staged(old) as files:
        written(files, "new").publish()
    assert contents(old.parent) == {"m.pte": "new", "m.json": "new"}


def test_permissions_are_those_of_any_new_file(old: Path):
    plain = old.parent / "plain"
    plain.touch()
    assert old.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_older_pair_and_nothing_else(old: Path, error: type[BaseException]):
    def failing() -> None:
        with staged(old) as files:
            written(files, "new")
            raise error

    with pytest.raises(error):
        failing()
    assert contents(old.parent) == {"m.pte": "old", "m.json": "old"}


@pytest.mark.parametrize("has_older", [True, False])
@pytest.mark.parametrize("failing", [".pte", ".json"])
def test_a_rename_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_older: bool, failing: str
):
    if has_older:
        with staged(tmp_path / "m.pte") as files:
            written(files, "old").publish()
    before, rename = contents(tmp_path), os.replace

    def failing_once(source: Path, target: Path) -> None:
        if target.suffix == failing:
            monkeypatch.setattr(os, "replace", rename)
            raise OSError("the disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing_once)
    with pytest.raises(ExportError, match="the disk is gone"), staged(tmp_path / "m.pte") as files:
        written(files, "new").publish()
    assert contents(tmp_path) == before


def written_with_weights(files: Staged, text: str) -> Staged:
    assert files.data is not None
    files.data.write_text(text)
    return written(files, text)


def test_all_three_appear_and_are_replaced(tmp_path: Path):
    for text in ("old", "new"):
        with staged(tmp_path / "m.pte", external_weights=True) as files:
            written_with_weights(files, text).publish()
        assert contents(tmp_path) == {"m.pte": text, "m.json": text, "m.ptd": text}


@pytest.mark.parametrize("has_older", [True, False])
@pytest.mark.parametrize("failing", [".ptd", ".pte", ".json"])
def test_a_rename_of_three_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_older: bool, failing: str
):
    if has_older:
        with staged(tmp_path / "m.pte", external_weights=True) as files:
            written_with_weights(files, "old").publish()
    before, rename = contents(tmp_path), os.replace

    def failing_once(source: Path, target: Path) -> None:
        if target.suffix == failing:
            monkeypatch.setattr(os, "replace", rename)
            raise OSError("the disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing_once)
    with (
        pytest.raises(ExportError, match="the disk is gone"),
        staged(tmp_path / "m.pte", external_weights=True) as files,
    ):
        written_with_weights(files, "new").publish()
    assert contents(tmp_path) == before


def test_name_of_a_temporary_file(tmp_path: Path):
    with staged(tmp_path / "m.pte") as files:
        assert final(files.program) == tmp_path / "m.pte"
        assert final(files.manifest) == tmp_path / "m.json"
    assert final(tmp_path / ".hidden.pte") == tmp_path / ".hidden.pte"


def test_folder_in_the_place_of_a_file(tmp_path: Path):
    (tmp_path / "m.json").mkdir()
    with pytest.raises(ExportError, match=r"m.json is a folder"), staged(tmp_path / "m.pte"):
        pass


@pytest.mark.parametrize("text", ["{}", "[1]", "no JSON", "", '{"format": 1}', '{"learning_rate": 1, "program": "x"}'])
def test_a_json_of_someone_else_stays(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with (
        pytest.raises(ExportError, match=r"config.json is no manifest of lightning_prune, .* config.pte would replace"),
        staged(tmp_path / "config.pte"),
    ):
        pass
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("config.json", text)]


def test_a_manifest_of_ours_is_replaced_whatever_its_age(old: Path):
    manifest = old.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 9'))
    with staged(old) as files:
        written(files, "new").publish()
    assert contents(old.parent) == {"m.pte": "new", "m.json": "new"}


def test_read_only_file(old: Path):
    old.chmod(0o444)
    with pytest.raises(ExportError, match=r"m.pte is read-only"), staged(old):
        pass


def test_full_disk(tmp_path: Path):
    with pytest.raises(ExportError, match=r"m.pte cannot be written \(No space left on device\)"):  # noqa: SIM117
        with writing(tmp_path / "m.pte"):
            raise OSError(28, "No space left on device")
