"""What may be pruned: parameters chosen by name pattern and layer type."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from lightning_prune.model.masks import dense_parameters, first_names, locate


@dataclass(frozen=True)
class Target:
    """One parameter that may be pruned.

    Args:
        name: dense name, such as ``encoder.conv1.weight``.
        shape: shape of the parameter, such as (out, in, *kernel).
        input_axis: the axis of the layer's inputs: 1 for a convolution or Linear, 0 for a transposed convolution.
    """

    name: str
    shape: tuple[int, ...]
    input_axis: int = 1


@dataclass(frozen=True)
class Targets:
    """Chooses parameters by name: by default the weight of every convolution and Linear.

    A pattern with ``*``, ``?`` or ``[`` chooses among those weights, by parameter name or by module path, and leaves
    out frozen and lazy ones. A name without them means that very parameter, of any layer. A tied parameter can be
    chosen or excluded by any of its names and is one target, under the first of them.

    Args:
        include: name patterns (fnmatch, case-sensitive) or exact names, of a parameter or of its module.
        exclude: the same; taken out of what ``include`` chose.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [t.name for t in Targets(exclude=("2",)).resolve(net)]
        ['0.weight']
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field in ("include", "exclude"):
            patterns = getattr(self, field)
            if isinstance(patterns, str) or not all(isinstance(p, str) for p in patterns):
                raise TypeError(f"Targets.{field} takes a sequence of name patterns, got {patterns!r}; write ('*',)")
            twice = [p for p, n in Counter(patterns).items() if n > 1]
            if twice:
                raise ValueError(f"Targets.{field} gives {twice[0]!r} twice; name each target once")
            object.__setattr__(self, field, tuple(patterns))
        if not self.include:
            raise ValueError("Targets.include is empty, so nothing would be pruned; leave it out to take every layer")

    def resolve(self, model: nn.Module) -> tuple[Target, ...]:
        """Return the chosen targets in the order of the model's parameters.

        Raises:
            ValueError: a pattern matches nothing; a named parameter is frozen or lazy, or named twice (also under
                two names that share one tensor); nothing is left.
        """
        parameters, first = dense_parameters(model), first_names(model)
        default = _default_names(model, parameters)
        chosen = {first[name] for name in _resolve_exact(self.include, parameters)}
        for pattern in self.include:
            if _is_pattern(pattern):
                chosen |= {first[name] for name in _matches(pattern, default, parameters)}
        for pattern in self.exclude:
            chosen -= {first[name] for name in _matches(pattern, tuple(parameters), parameters)}
        if not chosen:
            raise ValueError(f"{self} chooses no parameter of {type(model).__name__}; it has {_listed(default)}")
        return tuple(_target(model, name, parameters) for name in parameters if name in chosen)


def _is_pattern(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def _default_names(model: nn.Module, parameters: dict[str, nn.Parameter]) -> tuple[str, ...]:
    names = []
    for name, parameter in parameters.items():
        module, attribute = locate(model, name)
        is_layer = attribute == "weight" and isinstance(module, _ConvNd | nn.Linear)
        if is_layer and parameter.requires_grad and not is_lazy(parameter):
            names.append(name)
    return tuple(names)


def _matches(pattern: str, names: Sequence[str], parameters: dict[str, nn.Parameter]) -> list[str]:
    matched = [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n.rpartition(".")[0], pattern)]
    if not matched:
        known = [n for n in parameters if fnmatchcase(n, pattern) or fnmatchcase(n.rpartition(".")[0], pattern)]
        why = f"; it matches {_listed(known)}, which is frozen, lazy or no convolution or Linear" if known else ""
        raise ValueError(f"target pattern {pattern!r} matches no prunable parameter{why}; there are {_listed(names)}")
    return matched


def _resolve_exact(include: Sequence[str], parameters: dict[str, nn.Parameter]) -> list[str]:
    """Return the parameters that the exact names of ``include`` mean; refuse frozen, lazy and doubled ones."""
    owner: dict[int, str] = {}
    for given in (p for p in include if not _is_pattern(p)):
        name = given if given in parameters else f"{given}.weight"
        if name not in parameters:
            raise ValueError(f"target {given!r} is no parameter of this model; it has {_listed(tuple(parameters))}")
        parameter = parameters[name]
        if is_lazy(parameter):
            raise ValueError(f"target {name} is lazy: it has no shape yet; run one batch through the model first")
        if not parameter.requires_grad:
            raise ValueError(f"target {name} is frozen (requires_grad=False); unfreeze it or leave it out")
        if id(parameter) in owner:
            first = owner[id(parameter)]
            same = "the same parameter" if first == name else "one shared parameter"
            raise ValueError(f"targets {first} and {name} are {same}; name it once")
        owner[id(parameter)] = name
    return list(owner.values())


def _target(model: nn.Module, name: str, parameters: dict[str, nn.Parameter]) -> Target:
    input_axis = 0 if isinstance(locate(model, name)[0], _ConvTransposeNd) else 1
    return Target(name, tuple(parameters[name].shape), input_axis)


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
