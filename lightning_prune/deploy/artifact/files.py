"""Files that appear together or not at all: the program, its weights where they are apart, the manifest."""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_prune.deploy.artifact.manifest import is_manifest
from lightning_prune.errors import ExportError

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")


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

    def publish(self) -> None:
        """Rename the temporary files, the manifest last: a .pte that its manifest does not describe is never final.

        Raises:
            ExportError: a rename fails; the files that stood there before stand there again.
        """
        moves = [(self.program, self.path), (self.manifest, self.manifest_path)]
        if self.data is not None and self.data_path is not None:
            moves.insert(0, (self.data, self.data_path))
        backups: dict[Path, Path | None] = {}
        try:
            for _, target in moves[:-1]:
                backups[target] = _backup(target)
            for temporary, target in moves:
                os.replace(temporary, target)
        except OSError as error:
            for temporary, target in moves[:-1]:
                _put_back(target, backups.get(target), moved=not temporary.exists())
            raise ExportError(f"{self.path} cannot be put in place ({error}): nothing was changed") from error
        finally:
            for backup in backups.values():
                if backup is not None:
                    backup.unlink(missing_ok=True)


def _put_back(target: Path, backup: Path | None, moved: bool) -> None:
    if backup is not None:
        os.replace(backup, target)
    elif moved:
        target.unlink(missing_ok=True)


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
        _check_replaceable(target)
    if targets[1].exists() and not is_manifest(targets[1]):
        raise ExportError(
            f"{targets[1]} is no manifest of lightning_prune, and the manifest of {path.name} would replace it: move it"
            " away, or give the .pte another name"
        )
    token = secrets.token_hex(4)
    temporary = [path.parent / f".{p.name}.{token}.tmp" for p in targets]
    try:
        for one in temporary:
            _touch(one)
        data = (targets[2], temporary[2]) if external_weights else (None, None)
        yield Staged(path, targets[1], temporary[0], temporary[1], *data)
    finally:
        for one in temporary:
            one.unlink(missing_ok=True)


def _check_replaceable(target: Path) -> None:
    if target.is_dir():
        raise ExportError(f"{target} is a folder: choose the path of a file, as in {target / 'model.pte'}")
    if target.exists() and not target.stat().st_mode & stat.S_IWUSR:
        raise ExportError(f"{target} is read-only: allow writing to it or choose another path")


def _touch(temporary: Path) -> None:
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise ExportError(
            f"the folder {temporary.parent} cannot be written ({error.strerror}): choose another one"
        ) from error


def _backup(path: Path) -> Path | None:
    if not path.exists():
        return None
    backup = path.parent / f".{path.name}.{secrets.token_hex(4)}.old"
    try:
        try:
            os.link(path, backup)
        except OSError:
            shutil.copy2(path, backup)
    except OSError as error:
        backup.unlink(missing_ok=True)
        raise ExportError(f"{path} cannot be kept aside while it is replaced ({error}): nothing was changed") from error
    return backup


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
    found = _TEMPORARY.fullmatch(path.name)
    return path if found is None else path.with_name(found[1])
