"""Arguments of the public functions, checked before anything is done with them; errors name the argument."""

import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_prune.values import check_number

_LONGEST = 1_000_000
"""Seconds; a timer of the operating system takes no number of any size."""


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


def program_path(value: object, name: str = "path", suffix: str = ".pte") -> Path:
    """Return the path of a program.

    Raises:
        TypeError: it is no path.
        ValueError: another suffix.
    """
    path = given_path(value, name, f"model{suffix}")
    if path.suffix != suffix:
        example = str(path.with_suffix(suffix)) if path.name else f"model{suffix}"
        raise ValueError(f"{name}: got {str(path)!r}, must end in {suffix}, as in {example!r}")
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


def check_seconds(name: str, value: object) -> None:
    """Check a duration.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or not above 0.
    """
    check_number(name, value, above=0)
    if isinstance(value, int | float) and value > _LONGEST:
        raise ValueError(f"{name} must be at most {_LONGEST:,} seconds, got {value}")


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
    names: list[Any] = list(labels)
    for index, label in enumerate(names):
        if not isinstance(label, str):
            raise TypeError(f"labels: got {_shown(label)} as number {index}, every one must be a string")
    return tuple(map(str, names))


def _shown(value: object) -> str:
    """Return a value in words, short."""
    return f"{value!r:.60} ({type(value).__name__})" if value is not None else "None"
