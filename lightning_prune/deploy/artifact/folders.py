"""A folder that appears whole or not at all, and replaces only what was written here and left alone since."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_prune.deploy.program.arguments import given_path
from lightning_prune.errors import ExportError

RECORD = ".lightning_prune.json"
"""The file in which a folder remembers what was written to it: path -> sha256."""

BY_TOOLS = ("build", ".build", ".cxx", ".gradle", ".idea", ".swiftpm", ".DS_Store", "Package.resolved")
"""What Gradle, Xcode and their like leave in a folder that they build; it goes with the folder."""


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
        aside = self.folder.parent / f".{self.folder.name}.{secrets.token_hex(4)}.old"
        try:
            written = _hashes(self.building)
            (self.building / RECORD).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
            if self.folder.exists():
                self.folder.rename(aside)
            self.building.rename(self.folder)
        except OSError as error:
            if aside.exists():
                aside.rename(self.folder)
            raise ExportError(f"{self.folder} cannot be put in place ({error}): nothing was changed") from error
        shutil.rmtree(aside, ignore_errors=True)
        return tuple(self.folder / name for name in written)


@contextmanager
def replaced(folder: str | Path) -> Iterator[Replacement]:
    """Build a folder beside its place; what is left of it when the block ends is removed.

    Raises:
        ExportError: the parent does not exist or cannot be written, or there are files in the place that were not
            written here, or were changed since.
    """
    folder = given_path(folder, "folder", "out/android")
    folder = folder.resolve() if folder.is_symlink() or folder.name in ("", "..") else folder
    _check_replaceable(folder)
    building = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    try:
        building.mkdir()
    except OSError as error:
        raise ExportError(f"the folder {folder.parent} cannot be written ({error.strerror}): choose another") from error
    try:
        yield Replacement(folder, building)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    if not folder.parent.is_dir():
        raise ExportError(f"the folder {folder.parent} does not exist: create it, then export to {folder}")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file: choose the path of a folder")
    if not any(folder.iterdir()):
        return
    if not (folder / RECORD).is_file():
        raise ExportError(f"{folder} has files that no export wrote: choose an empty or a new folder")
    written, found = _record(folder / RECORD), _hashes(folder)
    own = sorted(name for name, digest in found.items() if written.get(name) != digest)
    if own:
        raise ExportError(
            f"{folder} has files that were added or changed since the export ({', '.join(own[:5])}): move them away, or"
            " export to another folder"
        )


def _record(path: Path) -> dict[str, str]:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read ({error}): move {path.parent} away, then export again") from error
    return written if isinstance(written, dict) else {}


def _hashes(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - set(BY_TOOLS))
        for name in sorted(set(files) - {*BY_TOOLS, RECORD}):
            path = Path(parent, name)
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(sorted(found.items()))
