"""JSON texts that say what they are and of which version: plans, tables, curves, histories; files that are whole."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write; it takes that name at the end, so that no reader meets half of it.

    Whatever is raised, what stood there before still stands there, and the other file is gone.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    written = Path(name)
    try:
        yield written
        # mkstemp's file is for its owner alone; this one is for whom the umask, which is read by setting it, says
        umask = os.umask(0)
        os.umask(umask)
        written.chmod(0o666 & ~umask)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


@dataclass(frozen=True)
class Form:
    """A kind of document.

    Args:
        name: what ``format`` says in the text: ``lightning_prune.compaction``.
        version: what is written; it is the newest that is read.
        kind: the word for it in errors: ``plan``.
        oldest: the oldest version that is read.

    Example:
        >>> form = Form("lightning_prune.example", 2, "example")
        >>> form.read(form.write({"value": 3}))["value"]
        3
    """

    name: str
    version: int
    kind: str
    oldest: int = 1

    def write(self, content: Mapping[str, Any], indent: int | None = None) -> str:
        """Return the content as JSON text with its head."""
        return json.dumps({"format": self.name, "version": self.version, **content}, indent=indent)

    def read(self, text: str) -> dict[str, Any]:
        """Return what :meth:`write` was given, and the head.

        Raises:
            TypeError: it is no text.
            ValueError: the text is no such JSON, or of a version that is not read here.
        """
        if not isinstance(text, str):
            raise TypeError(f"the {self.kind} must be JSON text, as to_json() returns, got {type(text).__name__}")
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the {self.kind} is no JSON text: {error}; pass what to_json() returned") from error
        if not isinstance(document, dict) or document.get("format") != self.name:
            raise ValueError(
                f'the JSON text is no {self.kind}, "format" is not "{self.name}"; pass what to_json() returned'
            )
        version = document.get("version")
        if type(version) is not int or not self.oldest <= version <= self.version:
            read = f"up to {self.version}" if self.oldest < self.version else str(self.version)
            raise ValueError(
                f"the {self.kind} is of version {version!r}, this package reads {read}; upgrade lightning_prune"
            )
        return document

    @contextmanager
    def parsing(self) -> Iterator[None]:
        """Turn what goes wrong while a document is taken apart into a ValueError that names it."""
        try:
            yield
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"the {self.kind} is malformed: {type(error).__name__}: {error}") from error
