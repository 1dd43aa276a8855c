"""Files that belong together, put in place by a process that may be killed between two renames."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_prune.documents import TEMPORARY, short, synced
from lightning_prune.errors import ExportError

_PATIENCE = 60.0
"""Seconds to wait for a lock, which is held while files are renamed and a folder is read."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other process put files of ours in place in a folder inside the block; the system ends it with us.

    Raises:
        ExportError: another process does not let go of it; whoever may read a folder can lock it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ExportError(
                        f"another process has locked the folder {folder} for {_PATIENCE:g} s: end it, or choose another"
                        " folder; nothing was changed"
                    ) from None
                time.sleep(0.01)
                continue
            except OSError:  # a file system without locks, as some that lie on other machines
                pass
            break
        yield
    finally:
        os.close(handle)


def complete(manifest: Path) -> None:
    """Finish what a process began to put in place before it was killed, where it did.

    Once all temporary files are on the disk, the manifest is renamed to end in ".new": from then on the new files
    stand, whoever renames them. Whoever gets the lock while there is such a file finds its process dead.

    Args:
        manifest: in its place.
    """
    if not _begun(manifest):
        return
    with suppress(OSError), locked(manifest.parent):  # in a read-only folder the reader says what does not fit
        for new in _begun(manifest):
            finish(new, manifest)


def finish(new: Path, manifest: Path) -> None:
    """Rename the files that belong to a manifest, and the manifest last.

    Args:
        new: temporary file with the manifest, which ends in ".new".
        manifest: its place.

    Raises:
        OSError: a rename fails.
    """
    process = (TEMPORARY.fullmatch(new.name) or {})["process"]
    for suffix in (".ptd", ".pte"):
        target = manifest.with_suffix(suffix)
        temporary = manifest.parent / f".{short(target.name)}.{process}.tmp"
        if temporary.exists():
            os.replace(temporary, target)
    synced(manifest.parent)
    os.replace(new, manifest)
    synced(manifest.parent)


def _begun(manifest: Path) -> list[Path]:
    try:
        known = [found for found in map(TEMPORARY.fullmatch, os.listdir(manifest.parent)) if found is not None]
    except OSError:
        return []
    return [manifest.parent / n[0] for n in known if n["ending"] == "new" and n["name"] == short(manifest.name)]
