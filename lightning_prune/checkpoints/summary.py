"""What a checkpoint file holds, without its model: sizes, zeros, and what pruning has written into it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_prune.checkpoints.files import read_checkpoint
from lightning_prune.checkpoints.state import KEY, VERSION
from lightning_prune.compaction import Compaction
from lightning_prune.errors import CheckpointError
from lightning_prune.model.summary import is_blank
from lightning_prune.tables import aligned, escaped


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a state dict, masks folded in.

    Args:
        name: dense name.
        shape: of it.
        elements: their number.
        zeros: how many of them are zero.
        is_masked: whether the file holds a mask of it.
        elements_before: their number before channels were removed; None: none were.
        is_blank: whether it is a vector of zeros, as biases are made.
    """

    name: str
    shape: tuple[int, ...]
    elements: int
    zeros: int
    is_masked: bool
    elements_before: int | None = None
    is_blank: bool = False

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.elements if self.elements else 0.0

    @property
    def left(self) -> float:
        """Share of the elements before pruning that are there and not zero; blank ones count as not zero."""
        return _left([self])


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint; ``str()`` of it is a table.

    Args:
        path: of the file.
        tensors: of its state dict, in order; parameters and buffers alike, as a file does not tell them apart.
        facts: what else it says, in words by what it is about.
    """

    path: Path
    tensors: tuple[StoredTensor, ...]
    facts: Mapping[str, str]

    @property
    def elements(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def zeros(self) -> int:
        """Zeros among them."""
        return sum(tensor.zeros for tensor in self.tensors)

    @property
    def sparsity(self) -> float:
        """Share of zeros among them."""
        return self.zeros / self.elements if self.elements else 0.0

    @property
    def left(self) -> float:
        """Share of the elements before pruning that are there and not zero; blank ones count as not zero."""
        return _left(self.tensors)

    def __str__(self) -> str:
        rows = [("tensor", "shape", "elements", "left", "")]
        for one in self.tensors:
            shape = "x".join(map(str, one.shape)) or "-"
            rows.append(
                (escaped(one.name), shape, f"{one.elements:,}", f"{one.left:.1%}", "masked" if one.is_masked else "")
            )
        rows.append(("in all", "", f"{self.elements:,}", f"{self.left:.1%}", ""))
        facts = [f"  {name:<14}{escaped(text)}" for name, text in self.facts.items()]
        return "\n".join([escaped(self.path), *facts, "", aligned(rows, words=2, remarks=1, has_total=True)])


def _left(tensors: Sequence[StoredTensor]) -> float:
    before = sum(t.elements if t.elements_before is None else t.elements_before for t in tensors)
    return sum(t.elements - (0 if t.is_blank else t.zeros) for t in tensors) / before if before else 1.0


def summarize_checkpoint(path: str | Path, *, is_trusted: bool = False) -> CheckpointSummary:
    """Return sparsity and sizes of what a checkpoint holds; the model's code is not needed.

    Args:
        path: of a checkpoint of Lightning's, or of a bare state dict.
        is_trusted: read a file with pickled objects too, which runs code that the file brings.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it cannot be read, holds pickled objects, or no tensors.
    """
    checkpoint = read_checkpoint(path, is_trusted=is_trusted)
    try:
        return _summary(path, checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # what was damaged or made up may be of any type and raise anything
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"
        raise CheckpointError(f"{path} holds what no checkpoint of ours does ({reason}): take another file") from error


def _summary(path: str | Path, checkpoint: Mapping[str, Any]) -> CheckpointSummary:
    state = checkpoint.get("state_dict", checkpoint)
    entry = checkpoint.get(KEY)
    masked = entry.get("masks", {}) if isinstance(entry, Mapping) else {}
    text = entry.get("compaction") if isinstance(entry, Mapping) else None
    try:
        before = Compaction.from_json(text).shapes if isinstance(text, str) else {}
    except ValueError:  # the facts say so
        before = {}
    tensors = tuple(_stored(state, masked, before)) if isinstance(state, Mapping) else ()
    if not tensors:
        raise CheckpointError("it holds no tensors: name a checkpoint of Lightning's, or a state dict")
    return CheckpointSummary(Path(path), tensors, _facts(checkpoint))


def _stored(
    state: Mapping[str, Any], masks: Mapping[str, Tensor], before: Mapping[str, tuple[int, ...]]
) -> Iterator[StoredTensor]:
    """Yield what a state dict holds; in format 1, and in torch's own, masks stood beside ``weight_orig``."""
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    endings = {name.removesuffix("_orig") for name in tensors if name.endswith("_orig")}
    beside = {name: tensors[f"{name}_mask"] for name in endings if f"{name}_mask" in tensors}
    masked = {**masks, **beside}
    for held_as, tensor in tensors.items():
        name = held_as.removesuffix("_orig") if held_as.removesuffix("_orig") in beside else held_as
        if name.removesuffix("_mask") in beside and name not in beside:
            continue
        stored, size = tensor, tuple(tensor.shape) if not tensor.is_nested else ()
        tensor = _values(name, tensor)
        if name in masked:
            mask = _values(f"the mask of {name}", masked[name])
            if tensor.shape != mask.shape:
                shapes = f"shape {tuple(mask.shape)}, its weight {tuple(tensor.shape)}"
                raise CheckpointError(f"the mask of {name} has {shapes}")
            tensor = tensor * mask.to(tensor.dtype)
        shape, dense = size, before.get(name)
        removed_from = None if dense is None or dense == shape else math.prod(dense)
        zeros = stored.numel() - int(torch.count_nonzero(tensor))
        yield StoredTensor(name, shape, stored.numel(), zeros, name in masked, removed_from, is_blank(tensor))


def _values(name: str, tensor: object) -> Tensor:
    """Return the values that a tensor holds: of a sparse one those that are there, of a quantized one what they mean.

    Raises:
        CheckpointError: it has none.
    """
    if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.is_nested:
        kind = type(tensor).__name__ if not isinstance(tensor, Tensor) else "nested" if tensor.is_nested else "meta"
        raise CheckpointError(f"{name} is a {kind} tensor, whose values cannot be counted: store it as a plain one")
    if tensor.layout is torch.sparse_coo:
        return tensor.coalesce().values()
    if tensor.layout is not torch.strided:
        return tensor.values()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    is_small_float = tensor.is_floating_point() and tensor.element_size() == 1  # counts for no float8 (torch 2.13)
    return tensor.float() if is_small_float else tensor


def _facts(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for key, name in (("epoch", "epoch"), ("global_step", "step"), ("pytorch-lightning_version", "Lightning")):
        if isinstance(value := checkpoint.get(key), int | str):
            facts[name] = str(value)
    entry = checkpoint.get(KEY)
    if not isinstance(entry, Mapping):
        return facts | {"pruning": "none recorded in the file"}
    if not isinstance(entry.get("version", VERSION), int) or entry.get("version", VERSION) > VERSION:
        return facts | {"pruning": f"recorded by a newer version ({entry.get('version')}): upgrade lightning_prune"}
    return facts | _run_facts(entry.get("run")) | _removals(entry.get("compaction"))


def _run_facts(run: object) -> dict[str, str]:
    if not isinstance(run, Mapping):
        return {}
    state = "finished" if run.get("is_done") else f"under way at step {run.get('step')}"
    recipes = [recipe for recipe in run.get("recipes") or () if isinstance(recipe, Mapping)]
    described = {
        f"recipe {index}" if len(recipes) > 1 else "recipe": "; ".join(f"{k}: {v}" for k, v in recipe.items())
        for index, recipe in enumerate(recipes)
    }
    return {"pruning": state, **described}


def _removals(text: object) -> dict[str, str]:
    if not isinstance(text, str):
        return {"removed": "no channels"}
    try:
        plan = Compaction.from_json(text)
    except ValueError as error:
        return {"removed": f"unreadable ({error})"}
    groups = [f"{name} {removal.size} → {removal.size - removal.removed}" for name, removal in plan.removals.items()]
    return {"removed": ", ".join(groups) or "no channels"}
