"""Lightning under both of its names, ``lightning.pytorch`` and ``pytorch_lightning``, whose classes are not the same.

A Trainer takes modules of its own package alone; what stands here works in the Trainer of either. Types in signatures
are those of ``lightning.pytorch``.
"""

import sys
from typing import Any, ClassVar, TypeGuard, TypeVar

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from lightning_utilities.core.overrides import is_overridden

__all__ = [
    "NAMES",
    "AnyCallback",
    "AnyModelCheckpoint",
    "Callback",
    "LightningDataModule",
    "LightningModule",
    "Logger",
    "Trainer",
    "is_lightning_module",
    "kinds",
    "overrides",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "trainer_class_for",
    "version_of",
]

NAMES = ("lightning.pytorch", "pytorch_lightning")
_FABRIC = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}


def kinds(path: str, *, is_fabric: bool = False) -> tuple[type[Any], ...]:
    """Return the classes of a name in the packages that are loaded; nothing is imported, so there may be none.

    Args:
        path: below the package, such as "callbacks.ModelCheckpoint".
        is_fabric: look in Fabric, on which the package stands.

    Example:
        >>> kinds("Callback")[0]
        <class 'lightning.pytorch.callbacks.callback.Callback'>
        >>> kinds("callbacks.NoSuchCallback")
        ()
    """
    classes = []
    for name in NAMES:
        place: Any = sys.modules.get(_FABRIC[name] if is_fabric else name)
        for step in path.split("."):
            place = getattr(place, step, None)
        if place is not None:
            classes.append(place)
    return tuple(classes)


def is_lightning_module(module: object) -> TypeGuard[LightningModule]:
    """Say whether this is a LightningModule of either package."""
    return isinstance(module, kinds("LightningModule"))


def overrides(module: LightningModule, hook: str) -> bool:
    """Say whether a LightningModule has a hook of its own."""
    # Lightning's is_overridden knows the modules of its own package alone (2.6.6): "Expected a parent"
    return any(is_overridden(hook, module, kind) for kind in kinds("LightningModule") if isinstance(module, kind))


def trainer_class_for(module: LightningModule) -> type[Trainer]:
    """Return the Trainer of the package that a module is of."""
    pairs = zip(kinds("LightningModule"), kinds("Trainer"), strict=True)
    return next((trainer for kind, trainer in pairs if isinstance(module, kind)), Trainer)


def version_of(trainer: Trainer) -> tuple[int, int]:
    """Return the major and minor version of the package that a Trainer is of."""
    packages = [sys.modules[name] for name in NAMES if name in sys.modules]
    package = next(package for package in packages if isinstance(trainer, package.Trainer))
    major, minor = package.__version__.split(".")[:2]
    return int(major), int(minor)


_Kind = TypeVar("_Kind", bound="_OfBoth")


class _OfBoth:
    """Makes the direct subclass one of pytorch_lightning's too, once that is loaded: it joins its bases.

    So a Trainer of either takes an instance for what it is, be it ``Trainer(callbacks=callback)`` without a list.
    """

    _path: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._join()  # for whoever looks at the class alone, as LightningCLI does

    def __new__(cls: type[_Kind], *args: Any, **kwargs: Any) -> _Kind:
        cls._join()
        return object.__new__(cls)

    @classmethod
    def _join(cls) -> None:
        owner = next(kind for kind in cls.__mro__ if _OfBoth in kind.__bases__)
        for kind in kinds(owner._path):
            if not issubclass(cls, kind):
                owner.__bases__ = (*owner.__bases__, kind)


class AnyCallback(_OfBoth, Callback):
    """A callback in either package."""

    _path = "Callback"


class AnyModelCheckpoint(_OfBoth, ModelCheckpoint):
    """A ModelCheckpoint in either package."""

    _path = "callbacks.ModelCheckpoint"
