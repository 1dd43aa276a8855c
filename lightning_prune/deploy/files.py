"""Two files that appear together or not at all."""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_prune.errors import ExportError


@dataclass(frozen=True)
class Staged:
    """Where a program and its manifest will stand, and the temporary files beside them that become these.

    Args:
        path: of the .pte.
        manifest_path: of the .json beside it.
        program: temporary file with the program, in the same folder.
        manifest: temporary file with the manifest.
    """

    path: Path
    manifest_path: Path
    program: Path
    manifest: Path

    def publish(self) -> None:
        """Rename both temporary files, the manifest last: a .pte that its manifest does not describe is never final.

        Raises:
            ExportError: a rename fails; the files that stood there before stand there again.
        """
        backup = _backup(self.path)
        try:
            os.replace(self.program, self.path)
            os.replace(self.manifest, self.manifest_path)
        except OSError as error:
            if backup is not None:
                os.replace(backup, self.path)
            elif not self.program.exists():
                self.path.unlink(missing_ok=True)
            raise ExportError(f"{self.path} cannot be put in place ({error}): nothing was changed") from error
        finally:
            if backup is not None:
                backup.unlink(missing_ok=True)


def program_path(path: str | Path) -> Path:
    """Return the path of a .pte.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix != ".pte":
        raise ValueError(f"path: got {str(path)!r}, must end in .pte, as in {str(path.with_suffix('.pte'))!r}")
    return path


@contextmanager
def staged(path: Path) -> Iterator[Staged]:
    """Reserve two temporary files beside ``path``; whatever is left of them when the block ends is removed.

    Raises:
        ExportError: the folder does not exist or cannot be written, or what stands there cannot be replaced.
    """
    manifest_path = path.with_suffix(".json")
    if not path.parent.is_dir():
        raise ExportError(f"the folder {path.parent} does not exist: create it, then export to {path}")
    for target in (path, manifest_path):
        _check_replaceable(target)
    token = secrets.token_hex(4)
    program, manifest = (path.parent / f".{p.name}.{token}.tmp" for p in (path, manifest_path))
    try:
        for temporary in (program, manifest):
            _touch(temporary)
        yield Staged(path, manifest_path, program, manifest)
    finally:
        for temporary in (program, manifest):
            temporary.unlink(missing_ok=True)


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
        raise ExportError(f"{path} cannot be written ({error.strerror or error}): nothing was changed") from error
