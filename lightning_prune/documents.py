"""JSON texts that say what they are and of which version: plans, tables, curves, histories; files that are whole."""

import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

Read = TypeVar("Read")

TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<process>(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8})\.(?P<ending>tmp|new|old)"
)
"""Names of :func:`beside`; the process in them says whose they are, so that those of dead ones can be swept."""

_MOST_BYTES = 150
"""Of a name to which more is added: file systems take 255."""
_MOST_PARTS = 2**21
_KINDS = {stat.S_ISFIFO: "a FIFO", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISSOCK: "a socket"}


def beside(path: Path, ending: str = "tmp") -> Path:
    """Return a name in the folder of ``path`` that nothing has."""
    process = f"{_place()}-{os.getpid()}-{_start(os.getpid())}-{secrets.token_hex(4)}"
    return path.parent / f".{short(path.name)}.{process}.{ending}"


def short(name: str) -> str:
    """Return a file's name as it stands in one of :func:`beside`: a long one is cut, and told from others like it."""
    data = os.fsencode(name)
    if len(data) <= _MOST_BYTES:
        return name
    return f"{data[: _MOST_BYTES - 9].decode(errors='ignore')}~{zlib.crc32(data):08x}"


def is_dead(name: re.Match[str]) -> bool:
    """Whether the process that is named in a file's name has ended; False where that cannot be told."""
    if sys.platform == "win32" or name["place"] != _place():  # os.kill ends it there; another machine's are not seen
        return False
    try:
        os.kill(int(name["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return name["start"] != str(_start(int(name["pid"])))  # another process may have its number by now


def sweep(folder: Path) -> None:
    """Remove the temporary files that dead processes left in a folder; those of an export that goes on stay."""
    with suppress(OSError):
        known = [found for found in map(TEMPORARY.fullmatch, os.listdir(folder)) if found is not None]
        committed = {found["process"] for found in known if found["ending"] == "new"}
        for found in known:
            if found["ending"] == "tmp" and found["process"] not in committed and is_dead(found):
                left = folder / found[0]
                with suppress(OSError):  # that of another user stays
                    remove(left)


def remove(*paths: Path) -> None:
    """Remove files and folders, where they are there; an interrupt in the middle comes when they are gone."""
    try:
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    except KeyboardInterrupt:
        remove(*paths)
        raise


def check_place(path: Path) -> None:
    """Refuse a path at which a file could not be replaced by another.

    Raises:
        OSError: a FIFO, a device, a socket or a link to nothing stands there.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        if path.is_symlink():
            raise OSError(f"{path} is a link to nothing: remove it, or choose another path") from None
        return
    for is_kind, words in _KINDS.items():
        if is_kind(mode):
            raise OSError(f"{path} is {words}, which no file replaces: choose another path")


def check_file(path: Path) -> None:
    """Refuse a path at which :func:`whole` could write no file, before anything is computed for it.

    Raises:
        OSError: its folder is missing, or a folder, a FIFO, a device, a socket or a link to nothing stands there.
    """
    check_place(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}, in which {path.name} would lie: create it")


def synced(path: Path) -> None:
    """Let what was written to a file or a folder reach the disk, so that a rename never outlives what it names."""
    with suppress(OSError):  # Windows opens no folder, and some file systems know no fsync
        handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def text_of(path: Path) -> str:
    """Return the text of a file that someone else may have made.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no file, or holds no text.
    """
    if path.exists() and not path.is_file():  # a FIFO would be waited for, and a device may never end
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'no file'}: name the file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} holds no text in UTF-8 ({error.reason}): name another file") from error


def loaded(path: Path, made: Callable[[str], Read]) -> Read:
    """Return what is made of the text of a file that someone else may have made.

    Args:
        path: of the file.
        made: of its text, such as the ``from_json`` of a class.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no file, or nothing can be made of what it holds; the message names it.
    """
    text = text_of(path)
    try:
        return made(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write; it takes that name at the end, so that no reader meets half of it.

    Whatever is raised, what stood there before still stands there, and the other file is gone; a killed process leaves
    the other file, and the next call that writes to the folder removes it. Of two processes the later wins whole.

    Raises:
        OSError: a folder, a FIFO, a device or a link to nothing stands there, or its folder is missing or cannot be
            written to.
    """
    check_file(path)
    sweep(path.parent)
    written = beside(path)
    try:
        # exclusive, so that no link that someone planted is followed; with the permissions of any new file
        written.touch(exist_ok=False)
        yield written
        synced(written)
        written.replace(path)
        synced(path.parent)
    finally:
        remove(written)


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """Give a new folder, which goes at the end; that of a killed process goes with the next call.

    Args:
        parent: where it lies; None: the system's folder for temporary files.
    """
    parent = parent or Path(tempfile.gettempdir())
    sweep(parent)
    folder = beside(parent / "lightning_prune")
    try:
        folder.mkdir(mode=0o700)  # nobody else's business
        yield folder
    finally:
        remove(folder)


def _place() -> str:
    """Return what names this machine's processes: a container or another machine may share the folder."""
    try:
        names = os.readlink("/proc/self/ns/pid")
    except OSError:
        names = ""
    return f"{zlib.crc32(f'{platform.node()} {names}'.encode()):08x}"


def _start(pid: int) -> int:
    """Return when a process started, in ticks since the machine did; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def parsed(text: str, *, is_strict: bool = False) -> Any:  # noqa: ANN401
    """Return what a JSON text holds: the way in which all are read that someone else may have made.

    Args:
        text: of a file.
        is_strict: refuse NaN and infinities too, of which JSON knows nothing.

    Raises:
        ValueError: it is none, is nested too deeply, or has more parts than any of ours.
    """
    # each takes 60 bytes and more, a text of ours has thousands
    if (parts := text.count("[") + text.count("{") + text.count('"') // 2) > _MOST_PARTS:
        raise ValueError(f"it has {parts:,} parts, more than {_MOST_PARTS:,}")

    def refused(number: str) -> NoReturn:
        raise ValueError(f"{number} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refused if is_strict else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def typed(kind: Any, value: Any) -> Any:  # noqa: ANN401
    """Return a value of a document as what a field of this type holds: tuples for lists, dataclasses for their fields.

    Args:
        kind: a dataclass, an enumeration, ``int``, ``float``, ``str``, ``bool``, or a tuple, a mapping or an optional
            one of them.
        value: plain, of JSON or of ``dataclasses.asdict``. Fields that are left out have their defaults.

    Raises:
        TypeError, ValueError: it is something else.

    Example:
        >>> typed(Mapping[int, tuple[float, ...]], {"3": [1, 2.5]})
        {3: (1.0, 2.5)}
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else typed(parts[0], value)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(typed(each, one) for each, one in zip(kinds, value, strict=True))
    if origin is Mapping and isinstance(value, Mapping):
        return {parts[0](key): typed(parts[1], one) for key, one in value.items()}
    if is_dataclass(kind) and isinstance(value, Mapping):
        hints, own = get_type_hints(kind), dict[str, Any]()
        for name, one in value.items():
            try:
                own[name] = typed(hints[name], one)
            except TypeError as error:
                raise TypeError(f"{name}: {error}") from error
        return kind(**own)  # type: ignore[operator]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is float and type(value) is int:
        return float(value)
    if (
        origin is not None
        or is_dataclass(kind)
        or not isinstance(value, kind)
        or (type(value) is bool) != (kind is bool)
    ):
        raise TypeError(f"{value!r:.60} is no {getattr(kind, '__name__', kind)}")
    return value


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
            document = parsed(text)
        except ValueError as error:
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
