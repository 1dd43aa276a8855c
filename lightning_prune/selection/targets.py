"""What may be pruned: parameters chosen by name pattern and layer type."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from lightning_prune.model.computed import sources
from lightning_prune.model.masks import dense_parameters, first_names, locate

_LAYERS = (_ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_WEIGHT = re.compile(r"weight|weight_(ih|hh|hr)(_l\d+(_reverse)?)?|(in|q|k|v)_proj_weight")


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
    """Chooses parameters by name: by default the weights of torch's layers but embeddings.

    These are the weights with two or more axes of convolutions, Linear, Bilinear, recurrent layers and cells, and the
    projections of MultiheadAttention. A pattern with ``*``, ``?`` or ``[`` chooses among them, by parameter name or by
    module path, and leaves out frozen and lazy ones. A name without them means that very parameter, of any layer, or
    all weights of a recurrent layer. A tied parameter can be chosen or excluded by any of its names and is one target,
    under the first of them.

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

    def resolve(self, model: nn.Module, with_computed: bool = False) -> tuple[Target, ...]:
        """Return the chosen targets in the order of the model's parameters.

        Args:
            model: dense or masked.
            with_computed: whether the parameters that the weight of a convolution or Linear is computed from, by weight
                norm, spectral norm or another parametrization, are chosen under the weight's name.

        Raises:
            ValueError: a pattern matches nothing; a named parameter is frozen or lazy, or named twice (also under
                two names that share one tensor); nothing is left.
        """
        parameters, first = dense_parameters(model), first_names(model)
        default, shown = _names(model, parameters, with_computed), _computed(model) if with_computed else {}
        chosen = {first[name] for name in _resolve_exact(self.include, model, parameters, shown)}
        for pattern in self.include:
            if _is_pattern(pattern):
                chosen |= {first[name] for name in _matches(pattern, default, parameters, shown)}
        for pattern in self.exclude:
            chosen -= {first[name] for name in _matches(pattern, tuple(parameters), parameters, _computed(model))}
        if not chosen:
            raise ValueError(f"{self} chooses no parameter of {type(model).__name__}; it has {_listed(default)}")
        return tuple(
            Target(name, tuple(p.shape), 0 if isinstance(locate(model, name)[0], _ConvTransposeNd) else 1)
            for name, p in parameters.items()
            if name in chosen
        )


def _is_pattern(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def _names(model: nn.Module, parameters: dict[str, nn.Parameter], with_computed: bool) -> tuple[str, ...]:
    """Return the parameters that patterns choose among: the weights of torch's layers that are neither frozen nor lazy.

    Embeddings are left out, since their rows are looked up one by one.
    """
    names = []
    for name, parameter in parameters.items():
        module, attribute = locate(model, name)
        is_weight = isinstance(module, _LAYERS) and bool(_WEIGHT.fullmatch(attribute))
        is_free = parameter.requires_grad and not is_lazy(parameter)
        if is_free and parameter.dim() > 1 and parameter.is_floating_point() and is_weight:
            names.append(name)
    if with_computed:
        computed = _computed(model)
        names = [n for n in parameters if n in names or (n in computed and parameters[n].requires_grad)]
    return tuple(names)


def _computed(model: nn.Module) -> dict[str, str]:
    """Map each parameter that the weight of a layer is computed from to the name of that weight."""
    return {
        f"{path}.{own}" if path else own: f"{path}.weight" if path else "weight"
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _ConvNd | nn.Linear)
        for own in sources(module)
    }


def recurrent_weights(model: nn.Module) -> list[tuple[str, ...]]:
    """Return the dense names of the weights of each recurrent layer."""
    return [
        tuple(f"{path}.{name}" if path else name for name in module._parameters if _WEIGHT.fullmatch(name))
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase)
    ]


def _matches(
    pattern: str, names: Sequence[str], parameters: dict[str, nn.Parameter], shown: Mapping[str, str]
) -> list[str]:
    def does(name: str) -> bool:
        forms = {name, shown.get(name, name)}
        return any(fnmatchcase(form, pattern) or fnmatchcase(form.rpartition(".")[0], pattern) for form in forms)

    matched = [name for name in names if does(name)]
    if not matched:
        known = [name for name in parameters if does(name)]
        why = f"; it matches {_listed(known)}, which is frozen, lazy or no weight of a layer" if known else ""
        raise ValueError(f"target pattern {pattern!r} matches no prunable parameter{why}; there are {_listed(names)}")
    return matched


def _meant(given: str, model: nn.Module, parameters: dict[str, nn.Parameter], shown: Mapping[str, str]) -> list[str]:
    """Return the parameters that an exact name means: itself, its layer's weight, or all of a recurrent layer's."""
    for name in (given, f"{given}.weight"):
        if name in parameters:
            return [name]
        if made_of := [source for source, weight in _computed(model).items() if weight == name]:
            if not shown:
                raise ValueError(
                    f"target {name} is computed from {_listed(made_of)}: name one of these, or prune channels"
                )
            return made_of
    own = next((own for own in recurrent_weights(model) if own[0].rpartition(".")[0] == given), ())
    if not own:
        raise ValueError(f"target {given!r} is no parameter of this model; it has {_listed(tuple(parameters))}")
    return list(own)


def _resolve_exact(
    include: Sequence[str], model: nn.Module, parameters: dict[str, nn.Parameter], shown: Mapping[str, str]
) -> list[str]:
    """Return the parameters that the exact names of ``include`` mean; refuse frozen, lazy and doubled ones."""
    owner: dict[int, str] = {}
    exact = [given for given in include if not _is_pattern(given)]
    for name in (name for given in exact for name in _meant(given, model, parameters, shown)):
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


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
