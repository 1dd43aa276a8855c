"""What a model is fed with, from whatever gives its data."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from lightning_prune.model.example import Example, renaming, sample_count


@runtime_checkable
class DataModule(Protocol):
    """What is asked of a LightningDataModule, of either package."""

    def prepare_data(self) -> None:
        """Bring the data here."""
        ...

    def setup(self, stage: str) -> None:
        """Make the data sets."""
        ...

    def train_dataloader(self) -> Iterable[Any]:
        """Return the loader of the training data."""
        ...


def loader_of(data: Iterable[Any] | DataModule) -> Iterable[Any]:
    """Return what gives the batches.

    Raises:
        TypeError: it is one tensor, or nothing that gives batches.
    """
    if isinstance(data, DataModule):
        data.prepare_data()
        data.setup("fit")
        return data.train_dataloader()
    if isinstance(data, Tensor):
        raise TypeError("data must give batches when iterated over, got one tensor: pass [tensor]")
    return data


def first_batches(batches: Iterable[Any], samples: int) -> list[Any]:
    """Return batches until they hold so many samples."""
    taken: list[Any] = []
    count = 0
    for batch in batches:
        taken.append(batch)
        count += sample_count(batch)
        if count >= samples:
            break
    return taken


def arguments_of(model: nn.Module, batch: Any) -> Example:  # noqa: ANN401
    """Return the arguments of forward that a batch holds.

    Args:
        model: its forward says which entries of a dict it takes.
        batch: a tensor, a dict of keyword arguments, or a tuple or list that begins with the inputs: a tensor, a tuple
            of positional arguments or a dict.

    Raises:
        TypeError: it is something else, a dict without any name that forward takes, or a pair whose first entry is one
            tensor where forward needs several.
    """
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(inputs, Tensor):
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        taken = inspect.signature(model.forward).parameters.values()
        needed = ", ".join(p.name for p in taken if p.default is p.empty and p.kind in kinds)
        if inputs is not batch and "," in needed:
            raise TypeError(
                f"forward of {type(model).__name__} needs {needed}, and a batch gives one input, since of a tuple or"
                " list the first entry is the inputs: let the loader give dicts by these names, or"
                f" (({needed}), targets)"
            )
        return Example((inputs,))
    if isinstance(inputs, tuple | list) and inputs:
        return Example(tuple(inputs))
    if isinstance(inputs, Mapping):
        parameters = inspect.signature(model.forward).parameters
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        named = {name: value for name, value in inputs.items() if takes_all or name in parameters}
        if named:
            return Example((), named)
        needed = [p.name for p in parameters.values() if p.default is inspect.Parameter.empty]
        line = renaming([*map(str, inputs)], needed)
        raise TypeError(
            f"a batch has {', '.join(map(str, inputs))}, and forward of {type(model).__name__} takes"
            f" {', '.join(parameters)}: let the loader give what forward takes{f', such as {line}' if line else ''}"
        )
    raise TypeError(
        "a batch is a tensor of inputs, a dict, or a tuple or list that begins with the inputs; got"
        f" {type(batch).__name__} of {type(inputs).__name__}"
    )
