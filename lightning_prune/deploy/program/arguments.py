"""Arguments of the public functions, checked before anything is done with them; errors name the argument."""

import math
import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor, nn


def given_path(value: object, name: str = "path", example: str = "model.pte") -> Path:
    """Return a path.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str | os.PathLike) or (
        isinstance(value, os.PathLike) and isinstance(os.fspath(value), bytes)
    ):
        raise TypeError(f"{name}: got {_shown(value)}, must be a path, as in {name}={example!r}")
    return Path(value)


def program_path(value: object, name: str = "path") -> Path:
    """Return the path of a .pte.

    Raises:
        TypeError: it is no path.
        ValueError: another suffix.
    """
    path = given_path(value, name)
    if path.suffix != ".pte":
        example = str(path.with_suffix(".pte")) if path.name else "model.pte"
        raise ValueError(f"{name}: got {str(path)!r}, must end in .pte, as in {example!r}")
    return path


def check_model(value: object) -> None:
    """Check that a model is one.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, type) and issubclass(value, nn.Module):
        raise TypeError(f"model: got the class {value.__name__}, must be a module made of it, as in {value.__name__}()")
    if not isinstance(value, nn.Module):
        raise TypeError(f"model: got {_shown(value)}, must be a torch.nn.Module or a LightningModule")


def check_whole(name: str, value: object, smallest: int = 1, why: str = "") -> None:
    """Check a whole number.

    Args:
        name: of the argument.
        value: of it.
        smallest: that is allowed.
        why: end of the sentence that refuses a smaller one.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {_shown(value)}, must be a whole number, as in {name}={max(smallest, 1)}")
    if value < smallest:
        raise ValueError(f"{name}: got {value}, must be at least {smallest}{why}")


def check_number(name: str, value: object, example: str, above: float | None = None) -> None:
    """Check a finite number.

    Args:
        name: of the argument.
        value: of it.
        example: one that is right, in words.
        above: what it must be above; None: it may be any.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN or infinite, or not above.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {_shown(value)}, must be a number, as in {name}={example}")
    if not math.isfinite(value) or (above is not None and not value > above):
        limit = "" if above is None else f" above {above}"
        raise ValueError(f"{name}: got {value}, must be a finite number{limit}, as in {name}={example}")


def check_seconds(name: str, value: object) -> None:
    """Check a duration.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or not above 0.
    """
    check_number(name, value, "60.0", above=0)
    if isinstance(value, int | float) and value > _LONGEST:
        raise ValueError(f"{name}: got {value}, must be at most {_LONGEST:,} seconds, as in {name}=60.0")


def check_bool(name: str, value: object) -> None:
    """Check a yes or no.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {_shown(value)}, must be True or False")


def check_text(name: str, value: object, example: str) -> None:
    """Check a name.

    Raises:
        TypeError: it is no string.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {_shown(value)}, must be a string, as in {name}={example!r}")


def check_loader(value: object, name: str = "verify_on") -> None:
    """Check that something gives batches.

    Raises:
        TypeError: it cannot be iterated over, or is one tensor.
    """
    if isinstance(value, Tensor):
        raise TypeError(f"{name}: got one tensor, must be batches, as in {name}=[batch] or a DataLoader")
    if value is not None and (isinstance(value, str | bytes) or not isinstance(value, Iterable)):
        raise TypeError(f"{name}: got {_shown(value)}, must be a DataLoader or another iterable of batches")


def checked_labels(labels: object) -> tuple[str, ...] | None:
    """Return names of classes as plain strings; those of a list, a tuple, an array.

    Raises:
        TypeError: they have no order, or one is no string.
    """
    if labels is None:
        return None
    if isinstance(labels, str):
        raise TypeError(f"labels: got the string {labels!r}, must be a list with one name per class")
    if isinstance(labels, bytes | Set | Mapping) or not isinstance(labels, Iterable):
        raise TypeError(f"labels: got {_shown(labels)}, must be a list with one name per class, in the order of them")
    found: list[Any] = list(labels)
    for index, label in enumerate(found):
        if not isinstance(label, str):
            raise TypeError(f"labels: got {_shown(label)} as number {index}, every one must be a string")
    return tuple(map(str, found))


_LONGEST = 1_000_000


def _shown(value: object) -> str:
    """Return a value in words, short."""
    return f"{value!r:.60} ({type(value).__name__})" if value is not None else "None"
