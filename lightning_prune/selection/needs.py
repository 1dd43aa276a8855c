"""What the pruned network has to come down to: a share of what the dense network costs, or a number.

A need says in what it counts and how much may be left; the schedule says how fast a run gets there. Several hold at
once, or each has a network of its own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightning_prune.selection.budget import Costs, NetworkCost
from lightning_prune.selection.latency import LatencyTable
from lightning_prune.values import Choice, check_bool, check_number, check_whole


class Need(Choice, ABC):
    """What may be left of one cost of the network; a subclass is a frozen dataclass."""

    @abstractmethod
    def cost(self, costs: Costs) -> NetworkCost:
        """Return how it counts.

        Args:
            costs: of the network that is to be pruned.

        Raises:
            ValueError: what it counts by does not fit the network.
        """

    @abstractmethod
    def limit(self, dense: float) -> float:
        """Return how much may be left, where the dense network has ``dense``."""

    @abstractmethod
    def amount(self, cost: float) -> str:
        """Return a cost in words: ``1,204 parameters``."""


@dataclass(frozen=True)
class _Counted(Need):
    """A number of which a share, or so many, may be left.

    Args:
        left: a float is a share of the dense network's, in (0, 1); an int is the number itself.
    """

    left: int | float

    def __post_init__(self) -> None:
        name = f"{type(self).__name__}.left"
        if isinstance(self.left, int) and not isinstance(self.left, bool):
            check_whole(name, self.left, 1)
        else:
            check_number(name, self.left, above=0, below=1, why=": a float is a share; write a number as an int")

    def limit(self, dense: float) -> float:
        """Return the share of the dense network's number, or the number."""
        return float(self.left) if isinstance(self.left, int) else self.left * dense


@dataclass(frozen=True)
class MACs(_Counted):
    """At most so many multiply-accumulates of one forward pass.

    Args:
        left: a float is a share of the dense network's, in (0, 1); an int is the number itself.

    Example:
        >>> MACs(0.3).limit(dense=1000.0)
        300.0
    """

    def cost(self, costs: Costs) -> NetworkCost:
        """Return those of the example input."""
        return costs.macs

    def amount(self, cost: float) -> str:
        """Return a cost in words."""
        return f"{cost:,.0f} MACs"


@dataclass(frozen=True)
class Params(_Counted):
    """At most so many parameters in the whole network.

    Args:
        left: a float is a share of the dense network's, in (0, 1); an int is the number itself.
    """

    def cost(self, costs: Costs) -> NetworkCost:
        """Return those of all layers."""
        return costs.params

    def amount(self, cost: float) -> str:
        """Return a cost in words."""
        return f"{cost:,.0f} parameters"


class Bits(Protocol):
    """What turns weights into integers, as far as it says how wide they are: ``Int8()``."""

    @property
    def weight_bits(self) -> float:
        """Of a weight of a convolution or Linear layer in the file."""
        ...


@dataclass(frozen=True)
class Size(Need):
    """At most so many bytes of weights in the exported file.

    What the file holds besides, its graph, is some kilobytes and does not count; the artifact of the export says the
    size of the whole.

    Args:
        bytes: that may be left.
        quantization: that the export will use, the class or a value, such as ``deploy.Int8``; None: weights stay in
            float32.
    """

    bytes: int
    quantization: Bits | type[Any] | None = None

    def __post_init__(self) -> None:
        check_whole("Size.bytes", self.bytes, 1)
        bits = 32 if self.quantization is None else getattr(self.quantization, "weight_bits", None)
        if not isinstance(bits, int | float):
            raise TypeError(f"Size.quantization must be one such as deploy.Int8 or None, got {self.quantization!r}")

    def cost(self, costs: Costs) -> NetworkCost:
        """Return the bytes of all parameters: those with one axis stay in float."""
        return costs.bytes(32.0 if self.quantization is None else self.quantization.weight_bits)

    def limit(self, dense: float) -> float:
        """Return the bytes."""
        return float(self.bytes)

    def amount(self, cost: float) -> str:
        """Return a cost in words."""
        return f"{cost:,.0f} bytes"


@dataclass(frozen=True)
class Partway(Need):
    """Some of the way from the dense network to a need.

    Args:
        need: where the way ends.
        share: of the way, in (0, 1].
    """

    need: Need
    share: float

    def cost(self, costs: Costs) -> NetworkCost:
        """Return how the need counts."""
        return self.need.cost(costs)

    def limit(self, dense: float) -> float:
        """Return how much may be left there."""
        return dense - self.share * max(0.0, dense - self.need.limit(dense))

    def amount(self, cost: float) -> str:
        """Return a cost in words."""
        return self.need.amount(cost)


@dataclass(frozen=True)
class Latency(Need):
    """At most so many milliseconds of one run in the ExecuTorch runtime of a device.

    They are those of the table's clock, on its device and its number of threads, as it predicts them from the widths of
    all channel groups.

    Args:
        ms: that may be left.
        table: of the device, with this network in it, or the path of its file; see
            :func:`lightning_prune.deploy.latency_table`.
    """

    ms: float
    table: LatencyTable | str | Path

    def __post_init__(self) -> None:
        check_number("Latency.ms", self.ms, above=0)
        if not isinstance(self.table, LatencyTable | str | Path):
            raise TypeError(f"Latency.table must be what latency_table() returns, or its file, got {self.table!r:.60}")

    def cost(self, costs: Costs) -> NetworkCost:
        """Return the predicted milliseconds.

        Raises:
            FileNotFoundError: the file of the table is not there.
        """
        return costs.time(self.table if isinstance(self.table, LatencyTable) else LatencyTable.load(self.table))

    def limit(self, dense: float) -> float:
        """Return the milliseconds."""
        return float(self.ms)

    def amount(self, cost: float) -> str:
        """Return a cost in words."""
        return f"{cost:,.4g} ms"


@dataclass(frozen=True)
class Memory(Need):
    """At most so many bytes of a phone's memory at any time while XNNPACK runs the program in float32.

    These are the weights as its kernels want them, the program's inputs and outputs, what XNNPACK sets aside for all
    that is computed between, and addresses by which convolutions reach their inputs. The runtime and the app are not
    among them. It is known for networks of convolutions and Linear layers; another operator is refused by name.

    Args:
        bytes: that may be taken.
        is_mapped: whether the app maps the file, as the samples of ``export_android`` and ``export_ios`` do; False: it
            reads it, as ExecuTorch's ``Module`` does where it is not told otherwise, so that weights lie in the memory
            twice while it loads.
    """

    bytes: int
    is_mapped: bool = True

    def __post_init__(self) -> None:
        check_whole("Memory.bytes", self.bytes, 1)
        check_bool("Memory.is_mapped", self.is_mapped)

    def cost(self, costs: Costs) -> NetworkCost:
        """Return the most bytes at one time.

        Raises:
            ValueError: the network has operators of which this is not known.
        """
        return costs.memory(self.is_mapped)

    def limit(self, dense: float) -> float:
        """Return the bytes."""
        return float(self.bytes)

    def amount(self, cost: float) -> str:
        """Return a cost in words."""
        return f"{cost:,.0f} bytes of memory"


@dataclass(frozen=True)
class Each(Choice):
    """A network for each of several needs, in one fit: the smaller are cut from the larger, and all share its training.

    A tuple of needs asks for one network that meets all of them.

    Args:
        needs: no two alike, in any order; on its way to the one that asks for most the fit stops at each of the others.

    Example:
        >>> Each((MACs(0.6), MACs(0.3))).needs[1]
        MACs(left=0.3)
    """

    needs: tuple[Need, ...]

    def __post_init__(self) -> None:
        needs = self.needs
        if not isinstance(needs, list | tuple) or not all(isinstance(need, Need) for need in needs):
            raise TypeError(f"Each.needs must be several needs, as in Each((MACs(0.6), MACs(0.3))), got {needs!r:.80}")
        if len(needs) < 2:
            raise ValueError("Each makes a network for each of several needs: name two at least, or leave it out")
        if twice := [need for number, need in enumerate(needs) if need in needs[:number]]:
            raise ValueError(f"Each.needs names {twice[0]} twice, and one network meets both: name each need once")
        object.__setattr__(self, "needs", tuple(needs))  # YAML gives a list


@dataclass(frozen=True)
class Bound:
    """A need and the network that it is of.

    Args:
        need: what is needed.
        cost: of the network, in what the need counts.
    """

    need: Need
    cost: NetworkCost

    @property
    def limit(self) -> float:
        """What may be left."""
        return self.need.limit(self.cost.total)

    @property
    def share(self) -> float:
        """The share of the cost that goes; 0 where the dense network meets the need."""
        # NumPy's numbers, of which a need may be made, would lie in checkpoints that are then not read without code
        return float(max(0.0, 1 - self.limit / self.cost.total)) if self.cost.total else 0.0

    def at(self, progress: float) -> float:
        """Return what may be left this share of the way from the dense network to the need."""
        return self.cost.total - progress * max(0.0, self.cost.total - self.limit)


def bound_to(needs: Sequence[Need], costs: Costs) -> tuple[Bound, ...]:
    """Return the needs with the costs of a network; those that it meets as it is ask for nothing.

    Raises:
        ValueError: the network meets all of them as it is.
    """
    bound = tuple(Bound(need, need.cost(costs)) for need in needs)
    if not any(one.share > 0 for one in bound):
        told = ", ".join(f"{one.need} ({one.need.amount(one.cost.total)})" for one in bound)
        raise ValueError(f"the network meets {told} as it is: nothing has to be pruned")
    return tuple(one for one in bound if one.share > 0)


Needed = Need | Each | Sequence[Need] | None
"""What a recipe asks for: one need, several at once, or a network for each."""


def as_needs(need: Needed) -> tuple[Need, ...]:
    """Return one need or several as a tuple."""
    need = need.needs if isinstance(need, Each) else need
    return () if need is None else tuple(need) if isinstance(need, Sequence) else (need,)


def aimed_at(need: Needed, bound: Sequence[Bound], sparsity: float) -> tuple[Bound, ...]:
    """Return the needs that count at a sparsity: where each has its network, those of the next that is due."""
    if isinstance(need, Each):
        ahead = [one.share for one in bound if one.share >= sparsity]
        share = min(ahead) if ahead else final_sparsity(bound)
        bound = [one for one in bound if one.share == share] or bound
    return tuple(bound)


def next_stop(need: Needed, bound: Sequence[Bound], sparsity: float) -> float:
    """Return how far the event after this sparsity may go: to where the next network is due, if each has its own."""
    return min((one.share for one in bound if isinstance(need, Each) and one.share > sparsity), default=1.0)


def final_sparsity(bound: Sequence[Bound]) -> float:
    """Return the share of the need that asks for most: the sparsity at which a run ends."""
    return min(max(one.share for one in bound), math.nextafter(1.0, 0.0))


BUILT_IN: tuple[type[Choice], ...] = (MACs, Params, Size, Latency, Memory, Each)
"""What a recipe names."""
