"""Files and folders that appear whole or not at all, and replace only what was written here."""

import ctypes
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_prune.deploy.artifact._recovery import complete, finish, locked
from lightning_prune.deploy.artifact.manifest import is_manifest, sha256_of
from lightning_prune.deploy.program.arguments import given_path
from lightning_prune.documents import TEMPORARY, beside, check_place, is_dead, parsed, remove, short, sweep, synced
from lightning_prune.errors import ExportError

RECORD = ".lightning_prune.json"
"""The file in which a folder remembers what was written to it: path -> sha256."""

BY_TOOLS = ("build", ".build", ".cxx", ".gradle", ".idea", ".swiftpm", ".DS_Store", "Package.resolved")
"""What Gradle, Xcode and their like leave in a folder that they build; it goes with the folder."""

_EXCHANGE = 2
"""RENAME_EXCHANGE of Linux's renameat2."""


@dataclass(frozen=True)
class Staged:
    """Where a program and its manifest will stand, and the temporary files beside them that become these.

    Args:
        path: of the .pte.
        manifest_path: of the .json beside it.
        program: temporary file with the program, in the same folder.
        manifest: temporary file with the manifest.
        data_path: of the .ptd beside it; None where the weights are in the program.
        data: temporary file with the weights.
    """

    path: Path
    manifest_path: Path
    program: Path
    manifest: Path
    data_path: Path | None = None
    data: Path | None = None

    @property
    def weights(self) -> tuple[tuple[Path, Path], ...]:
        """The temporary file with the weights and what it becomes; empty where they are in the program."""
        return () if self.data is None or self.data_path is None else ((self.data, self.data_path),)

    def publish(self) -> None:
        """Rename the temporary files, the manifest last: a .pte that its manifest does not describe is never final.

        Killed in between, the next call for these files, or their next reader, finishes it.

        Raises:
            ExportError: a rename fails; the files that stood there before stand there again.
        """
        moves = [*self.weights, (self.program, self.path)]
        for temporary in (*(temporary for temporary, _ in moves), self.manifest):
            synced(temporary)
        new = self.manifest.with_suffix(".new")
        with locked(self.path.parent):
            # The manifest is renamed last and in one step: where that fails it still stands, and needs no backup.
            backups = {target: beside(target) for _, target in moves if target.exists()}
            try:
                for target, backup in backups.items():
                    _back_up(target, backup)
                os.replace(self.manifest, new)
                finish(new, self.manifest_path)
            except OSError as error:
                new.unlink(missing_ok=True)
                for temporary, target in moves:
                    if target in backups:
                        os.replace(backups[target], target)
                    elif not temporary.exists():
                        target.unlink(missing_ok=True)
                raise ExportError(f"{self.path} cannot be put in place ({error}): nothing was changed") from error
            except BaseException:  # an interrupt: from the first rename on the new files stand
                if new.exists():
                    finish(new, self.manifest_path)
                raise
            finally:
                remove(*backups.values())


def _back_up(path: Path, backup: Path) -> None:
    try:
        try:
            os.link(path, backup)
        except OSError:  # a file system without hard links, as FAT
            shutil.copy2(path, backup)
    except OSError as error:
        raise ExportError(f"{path} cannot be kept aside while it is replaced ({error}): nothing was changed") from error


@contextmanager
def staged(path: Path, external_weights: bool = False) -> Iterator[Staged]:
    """Reserve temporary files beside ``path``; whatever is left of them when the block ends is removed.

    Args:
        path: of the .pte.
        external_weights: whether a .ptd belongs to it.

    Raises:
        ExportError: the folder does not exist or cannot be written, or what stands there cannot be replaced, or is a
            .json that is no manifest of ours.
    """
    targets = [path, path.with_suffix(".json"), *([path.with_suffix(".ptd")] if external_weights else [])]
    if not path.parent.is_dir():
        raise ExportError(f"the folder {path.parent} does not exist: create it, then export to {path}")
    for target in targets:
        _check_place(target)
        if target.is_dir():
            raise ExportError(f"{target} is a folder: choose the path of a file, as in {target / 'model.pte'}")
        if target.exists() and not target.stat().st_mode & stat.S_IWUSR:
            raise ExportError(f"{target} is read-only: allow writing to it or choose another path")
    if targets[1].exists() and not is_manifest(targets[1]):
        raise ExportError(
            f"{targets[1]} is no manifest of lightning_prune, and the manifest of {path.name} would replace it: move it"
            " away, or give the .pte another name"
        )
    complete(targets[1])
    sweep(path.parent)
    process = beside(path).name.rsplit(".", 2)[1]  # the same for all of them, by which a reader knows them again
    temporary = [path.parent / f".{short(target.name)}.{process}.tmp" for target in targets]
    try:
        for file in temporary:
            try:
                # Opened as any new file is, so that it gets the permissions of one; tempfile would close it to others.
                file.touch(exist_ok=False)
            except OSError as error:
                raise ExportError(
                    f"the folder {path.parent} cannot be written ({error.strerror}): choose another one"
                ) from error
        data = (targets[2], temporary[2]) if external_weights else (None, None)
        yield Staged(path, targets[1], temporary[0], temporary[1], *data)
    finally:
        remove(*temporary)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into an error that names the file.

    Raises:
        ExportError: the disk is full, or the file cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"{final(path)} cannot be written ({error.strerror or error}): nothing was changed"
        ) from error


def final(path: Path) -> Path:
    """Return what a temporary file of :func:`staged` will be called."""
    matched = TEMPORARY.fullmatch(path.name)
    return path if matched is None else path.with_name(matched["name"])


@dataclass(frozen=True)
class Replacement:
    """A folder that is built beside its place.

    Args:
        folder: its place.
        building: where its files are written.
    """

    folder: Path
    building: Path

    def publish(self) -> tuple[Path, ...]:
        """Put the folder in its place, and return the paths of its files there, sorted.

        Raises:
            ExportError: it cannot be moved; what stood there before stands there again.
        """
        try:
            written = _hashes(self.building)
            (self.building / RECORD).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
            for name in (*written, RECORD):
                synced(self.building / name)
            with locked(self.folder.parent):
                _check_own(self.folder)  # again: the export took minutes
                if not self.folder.exists():
                    self.building.rename(self.folder)
                elif _exchanged(self.building, self.folder):
                    try:
                        _check_own(self.building, self.folder)
                    except ExportError:  # a file was added to the old folder at the last moment: back again
                        _exchanged(self.building, self.folder)
                        raise
                else:  # the system exchanges none; _restore knows what a kill leaves
                    aside = beside(self.folder, "old")
                    self.folder.rename(aside)
                    try:
                        self.building.rename(self.folder)
                    except BaseException:
                        if not self.folder.exists():
                            aside.rename(self.folder)
                        raise
                    remove(aside)
            synced(self.folder.parent)
        except OSError as error:
            raise ExportError(f"{self.folder} cannot be put in place ({error}): nothing was changed") from error
        return tuple(self.folder / name for name in written)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in a step; False where the system or the file system cannot."""
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if exchange is None:
        return False
    here = -100  # AT_FDCWD
    return exchange(here, os.fsencode(one.absolute()), here, os.fsencode(other.absolute()), _EXCHANGE) == 0


def _restore(folder: Path) -> None:
    """Put back the folder that a killed process had moved aside, or remove it where the new one is in place."""
    for found in filter(None, map(TEMPORARY.fullmatch, os.listdir(folder.parent))):
        if found["ending"] == "old" and found["name"] == short(folder.name) and is_dead(found):
            aside = folder.parent / found[0]
            if folder.exists():
                remove(aside)
            else:
                aside.rename(folder)


@contextmanager
def replaced(folder: str | Path) -> Iterator[Replacement]:
    """Build a folder beside its place; what is left of it when the block ends is removed.

    Raises:
        ExportError: the parent does not exist or cannot be written, or there are files in the place that were not
            written here, or were changed since.
    """
    folder = given_path(folder, "folder", "out/android")
    _check_place(folder)
    folder = folder.resolve() if folder.is_symlink() or folder.name in ("", "..") else folder
    if not folder.parent.is_dir():
        raise ExportError(f"the folder {folder.parent} does not exist: create it, then export to {folder}")
    building = beside(folder)
    try:
        try:
            with locked(folder.parent):
                _restore(folder)
                _check_own(folder)
            sweep(folder.parent)
            building.mkdir()
        except OSError as error:
            raise ExportError(
                f"the folder {folder.parent} cannot be written ({error.strerror}): choose another"
            ) from error
        yield Replacement(folder, building)
    finally:
        remove(building)


def _check_place(path: Path) -> None:
    try:
        check_place(path)
    except OSError as error:
        raise ExportError(str(error)) from None


def _check_own(folder: Path, shown: Path | None = None) -> None:
    """Refuse a folder with anything in it that was not written here, or was changed since; ``shown`` is its name."""
    shown = shown or folder
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportError(f"{shown} is a file: choose the path of a folder")
    if not any(folder.iterdir()):
        return
    record = folder / RECORD
    if not record.is_file():
        raise ExportError(f"{shown} has files that no export wrote: choose an empty or a new folder")
    try:
        written = parsed(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{record} cannot be read ({error}): move {shown} away, then export again") from error
    written = written if isinstance(written, dict) else {}
    foreign = sorted(name for name, digest in _hashes(folder).items() if written.get(name) != digest)
    if foreign:
        raise ExportError(
            f"{shown} has files that were added or changed since the export ({', '.join(foreign[:5])}): move them"
            " away, or export to another folder"
        )


def _hashes(folder: Path) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - set(BY_TOOLS))
        for name in sorted(set(files) - {*BY_TOOLS, RECORD}):
            path = Path(parent, name)
            hashes[path.relative_to(folder).as_posix()] = sha256_of(path)
    return dict(sorted(hashes.items()))
