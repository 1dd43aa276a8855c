"""Pruned checkpoints in classes that one does not own, by whichever call their project loads them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_prune.checkpoints.files import check_claims, check_no_code, check_no_folder, no_checkpoint, reading
from lightning_prune.checkpoints.state import KEY, adapt, check_entry, entry_beside, plan_in, take_example
from lightning_prune.compaction import Compaction
from lightning_prune.compaction.resize import all_or_nothing
from lightning_prune.errors import CheckpointError

_Made = TypeVar("_Made", covariant=True)


class Loadable(Protocol[_Made]):
    """A class with a ``load_from_checkpoint`` of Lightning's form, or of its project's."""

    def load_from_checkpoint(self, path: Any, /, **kwargs: Any) -> _Made:  # noqa: ANN401
        """Return the model of a file."""
        ...


def load(kind: Loadable[_Made], path: str | Path, **kwargs: Any) -> _Made:
    """Return ``kind.load_from_checkpoint(path, **kwargs)`` of a dense, masked or compact checkpoint.

    Args:
        kind: a LightningModule's class, :class:`~lightning_prune.PruningMixin` or not, or another class with that call.
        path: of the checkpoint.
        **kwargs: of ``load_from_checkpoint``.

    Raises:
        TypeError: the class has no such call.
        CheckpointError: the file cannot be read, is no checkpoint, or names code to be called, as those of LightningCLI
            do (``weights_only=False`` reads it); the checkpoint is of a model built with other shapes, or of a newer
            version.
    """
    if not callable(getattr(kind, "load_from_checkpoint", None)):
        raise TypeError(
            f"load takes a class with load_from_checkpoint, as a LightningModule's, got {kind!r}: let a plain module"
            " take a state inside lightning_prune.adopting(), with load_state_dict"
        )
    checks = () if kwargs.get("weights_only") is False else (partial(check_no_code, path), partial(check_claims, path))
    with _adopting(partial(reading, path), checks) as files:
        try:
            return kind.load_from_checkpoint(path, **kwargs)
        except IsADirectoryError:
            check_no_folder(path)
            raise
        except (KeyError, TypeError, AttributeError) as error:
            reason = no_checkpoint(path, files[-1]) if files else None
            if reason is None:
                raise
            raise CheckpointError(reason) from error


@contextmanager
def adopting() -> Iterator[None]:
    """Inside, a model takes the shape and the masks of the state that it loads, whoever has read it.

    Tensors are known again by identity, so a loader may drop, add or change prefixes and leave parts out. A file that
    is without our key holds what ``state_dict()`` of a compact model says of its plan. Where a loader copies the
    tensors first (``.half()``) or reads them by other means (safetensors), shapes and masks speak for themselves, but
    not sizes that no shape tells, such as the groups of a convolution. What pruning does not explain is torch's size
    mismatch: a wider tensor, a layer that is narrower alone, layers that do not fit each other, another output. A load
    that raises leaves shapes and masks as they were.

    Changes:
        ``torch.load`` and ``nn.Module.load_state_dict``, until the block is left.
    """
    with _adopting(nullcontext):
        yield


@contextmanager
def _adopting(
    attended: Callable[[], AbstractContextManager[None]], checks: Sequence[Callable[[object], None]] = ()
) -> Iterator[list[object]]:
    """See :func:`adopting`; files are read in a context of their own, and checked. Yields what they hold."""
    read, take = torch.load, nn.Module.load_state_dict
    files: list[object] = []  # held, so that no id is used twice
    known: dict[int, tuple[str, Mapping[str, Any] | None]] = {}

    def remembering(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with attended():
            content = read(*args, **kwargs)
            for check in checks:
                check(content)
        files.append(content)
        if isinstance(content, Mapping):
            for name, tensor, entry in _tensors_in(content, content.get(KEY)):
                known[id(tensor)] = name, entry
        return content

    def adapting(model: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        origins = {name: known[id(tensor)] for name, tensor in state_dict.items() if id(tensor) in known}
        entry = next(iter(origins.values()))[1] if origins else entry_beside(state_dict)
        if entry is not None and origins:
            check_entry(entry)
            entry = _renamed(entry, {name: now for now, (name, of) in origins.items() if of is entry})
        if entry is None and not _differs(model, state_dict):
            return take(model, state_dict, *args, **kwargs)
        adapted: Any = copy(state_dict)  # with the versions of its modules, which torch keeps beside the items
        with all_or_nothing() as undo:
            try:
                adapt(model, adapted, entry, undo)
            except CheckpointError as error:
                if entry is not None:
                    raise
                reason = error
            else:
                result = take(model, adapted, *args, **kwargs)
                if all(name == now for now, (name, _) in origins.items()):
                    take_example(model, entry or {})
                return result
        try:  # a module may take another shape by means of its own
            return take(model, state_dict, *args, **kwargs)
        except RuntimeError as error:
            raise CheckpointError(f"{error}\n{reason}") from error

    torch.load = remembering
    nn.Module.load_state_dict = adapting  # type: ignore[method-assign]
    try:
        yield files
    finally:
        torch.load, nn.Module.load_state_dict = read, take


def _tensors_in(
    content: Mapping[str, Any], entry: Mapping[str, Any] | None
) -> Iterator[tuple[str, Tensor, Mapping[str, Any] | None]]:
    """Yield the tensors of a file, with their names in its state dict, which projects put where they like.

    Args:
        content: of the file, or a state dict in it.
        entry: what the file says of pruning; None: nothing, so each state dict speaks for itself.

    Yields:
        name, tensor, what is said of pruning.
    """
    entry = entry_beside(content) if entry is None else entry
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield name, value, entry
        elif isinstance(value, Mapping) and name != KEY:
            yield from _tensors_in(value, entry)


def _differs(model: nn.Module, state_dict: Mapping[str, Any]) -> bool:
    """Say whether a state without an entry shows another shape than the model's, or masks."""
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    return any(
        f"{name}_orig" in state_dict
        or (name in state_dict and not is_lazy(tensor) and state_dict[name].shape != tensor.shape)
        for name, tensor in own.items()
    )


def _renamed(entry: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return an entry as it concerns tensors that a loader has renamed; what the loader left out is not in it.

    Args:
        entry: of the checkpoint.
        names: in the checkpoint's state dict -> in the one that is loaded.
    """
    # in format 1 a masked weight has this ending
    live = {name: now for name, now in names.items() if name.endswith("_orig") and now.endswith("_orig")}
    dense = {**names, **{name.removesuffix("_orig"): now.removesuffix("_orig") for name, now in live.items()}}
    renamed = {**entry, "structured": [dense[name] for name in entry.get("structured", ()) if name in dense]}
    renamed["masks"] = {dense[name]: mask for name, mask in entry.get("masks", {}).items() if name in dense}
    if all(name == now for name, now in names.items()):
        return renamed
    if (plan := plan_in(entry)) is not None:
        renamed["compaction"] = _renamed_plan(plan, dense).to_json()
    return renamed


def _renamed_plan(plan: Compaction, names: Mapping[str, str]) -> Compaction:
    removals = {}
    for group, removal in plan.removals.items():
        entries = {names[name]: axes for name, axes in removal.entries.items() if name in names}
        unmasked = {names[name]: axes for name, axes in removal.unmasked.items() if name in names}
        if entries:
            scales = {names[name]: scale for name, scale in removal.scales.items() if name in names}
            removals[group] = replace(removal, entries=entries, unmasked=unmasked, scales=scales)
    attributes = {}
    for path, (name, axis) in plan.attributes.items():
        owner, _, attribute = path.rpartition(".")
        inside = owner and f"{owner}."
        # an attribute's module goes where any tensor in it has gone
        ways = ((now, old.removeprefix(inside)) for old, now in names.items() if old.startswith(inside))
        place = next((now.removesuffix(rest) for now, rest in ways if now.endswith(rest)), None)
        if name in names and place is not None:
            attributes[f"{place}{attribute}"] = (names[name], axis)
    shapes = {names[name]: shape for name, shape in plan.shapes.items() if name in names}
    return Compaction(shapes, removals, attributes)
