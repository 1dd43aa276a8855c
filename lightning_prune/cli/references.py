"""Objects in the user's code, named as ``package.module:attribute`` or ``folder/file.py:attribute``."""

import importlib
import importlib.util
import sys
import sysconfig
import traceback
import zlib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

_DATA = "a loader or another iterable of batches"


def load(reference: str) -> Any:  # noqa: ANN401
    """Return what a reference names; its module is imported, with the working folder on the path.

    Args:
        reference: ``package.module:attribute`` or ``folder/file.py:attribute``; attributes may have dots.

    Raises:
        ValueError: it has another form, there is no such module, file or attribute, or the import fails.
    """
    place, _, attribute = reference.rpartition(":")
    if not place or not attribute:
        raise ValueError(f"{reference!r} must be module:attribute or file.py:attribute, as in my.module:Digits")
    found: Any = _module(place)
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            names = [n for n in vars(found) if not n.startswith("_")] if isinstance(found, ModuleType) else []
            close = get_close_matches(name, names, n=1)
            # without the classes, functions and modules that it imports; an object has the __module__ of its class
            of = getattr(found, "__name__", "")
            things = {n: vars(found)[n] for n in names}
            own = [
                n
                for n, x in things.items()
                if not hasattr(x, "__name__") or str(getattr(x, "__module__", "")).startswith(of)
            ]
            has = f"t has: {', '.join(own) or 'nothing'}"
            hint = f"did you mean {close[0]!r}? I{has}" if close else f"i{has}"
            raise ValueError(f"{place} has no {attribute!r}; {hint}") from None
    return found


def made(reference: str, kind: type | tuple[type, ...]) -> Any:  # noqa: ANN401
    """Return what a reference names where it is of a kind, and what it gives where it is a function or a class.

    Raises:
        ValueError: it cannot be loaded, fails, or gives something else.
    """
    found = load(reference)
    if isinstance(found, kind):
        return found
    if callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise ValueError(
                f"{reference}() fails: {type(error).__name__}: {error}; name a function that needs no arguments"
            ) from error
    if not isinstance(found, kind):
        needed = f"a {kind.__name__}" if isinstance(kind, type) and kind is not Iterable else _DATA
        raise ValueError(f"{reference} gives {found!r:.60} ({type(found).__name__}): {needed} is needed")
    return found


def _module(place: str) -> ModuleType:
    path = Path(place)
    if path.suffix == ".py":
        if not path.is_file():
            raise ValueError(f"there is no file {place}")
        first_on_path(path.parent)
        return _imported(place, lambda: _from_file(path))
    first_on_path(Path())
    return _imported(place, lambda: importlib.import_module(place))


def first_on_path(folder: Path) -> None:
    """Let what is imported from now on be looked for in a folder before installed packages, after standard ones."""
    text = str(folder.resolve())
    if text not in sys.path:
        # a copy.py of the user's would otherwise be taken for Python's by whoever imports that one later
        standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
        standard |= {str(Path(place, "lib-dynload")) for place in standard}
        sys.path.insert(max((i + 1 for i, place in enumerate(sys.path) if place in standard), default=0), text)


def _from_file(path: Path) -> ModuleType:
    path = path.resolve()
    name = path.stem
    known = sys.modules.get(name)
    if name in sys.stdlib_module_names or (known is not None and getattr(known, "__file__", None) != str(path)):
        # under its own name it would be taken for the other module by whoever imports that one later
        name = f"{name}_{zlib.crc32(str(path).encode()):08x}"
        known = sys.modules.get(name)
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half of a module would be taken for the whole one
        raise
    return module


def _imported(place: str, load_it: Any) -> ModuleType:  # noqa: ANN401
    try:
        return load_it()
    except ModuleNotFoundError as error:
        raise ValueError(f"{place} cannot be imported: {error}; run from the folder that holds it") from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}"
        raise ValueError(f"{place} cannot be imported: {type(error).__name__}: {error} ({where})") from error
