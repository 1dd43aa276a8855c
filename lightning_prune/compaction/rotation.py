"""Turn a residual stream: RMS norms without a vector of their own, one matrix in writers and readers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.compaction._equivalence import Arguments, Comparison
from lightning_prune.compaction.resize import Undo, set_tensor
from lightning_prune.errors import CompactionError, NonFiniteError
from lightning_prune.graph.stream import Reader, Stream
from lightning_prune.model.masks import dense_names, first_names, locate
from lightning_prune.model.plain_copy import plain_copy


@dataclass(frozen=True, eq=False)
class Affine:
    """What a normalisation does beside dividing by a length: y = (x - mean(x)) / rms · gain + offset.

    Args:
        gain: shape (width,), float64.
        offset: shape (width,), float64.
        is_centred: whether the mean is taken away.
        eps: added to the mean square; None: torch's own choice by dtype.
    """

    gain: Tensor
    offset: Tensor
    is_centred: bool
    eps: float | None

    @classmethod
    def of(cls, norm: nn.Module, width: int) -> Affine:
        """Read it off a module, of whatever class, by the values that it gives for three inputs.

        Raises:
            CompactionError: it computes something else.
        """
        model = plain_copy(norm).double().eval()
        eps = next((v for n in ("eps", "variance_epsilon", "epsilon") if (v := getattr(norm, n, 0)) is None or v), None)
        device = next((t.device for t in (*norm.parameters(), *norm.buffers())), torch.device("cpu"))
        # a mean to be taken away, and a row as small as eps
        x = torch.randn(4, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1
        x = (x * torch.tensor([1, 1, 1, 1e-3]).double()[:, None]).to(device)[None]
        # classes of transformers compute at float32, whatever they get
        slack = 1e-9 if isinstance(norm, nn.LayerNorm | nn.RMSNorm) else 1e-5
        with torch.no_grad():
            y = model(x)
            for is_centred in (True, False):
                unit = _normalised(x, is_centred, eps)
                # two rows tell a line for each entry, the others whether all lie on it
                gain = (y[:, 0] - y[:, 1]) / (unit[:, 0] - unit[:, 1])
                offset = y[:, 0] - gain * unit[:, 0]
                offset = torch.where(offset.abs() < slack * y.abs().max(), 0.0, offset)
                if torch.allclose(gain[:, None] * unit + offset[:, None], y, rtol=slack, atol=slack * 10):
                    return cls(gain[0].cpu(), offset[0].cpu(), is_centred, eps)
        raise CompactionError(f"{type(norm).__name__} normalises in a way that is not known")


def _normalised(x: Tensor, is_centred: bool, eps: float | None) -> Tensor:
    """Return x over the root of its mean square along the last axis, without its mean or as it is."""
    x = x - x.mean(-1, keepdim=True) if is_centred else x
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


class Moments:
    """Second moments of what the normalisations of a stream give, over whatever the model runs on meanwhile.

    Each normalisation counts as much as every other; their own vectors do not count.

    Args:
        model: dense.
        stream: of it.
    """

    def __init__(self, model: nn.Module, stream: Stream) -> None:
        self._affine = {path: Affine.of(model.get_submodule(path), stream.size) for path in stream.norms}
        self._sum = torch.zeros(stream.size, stream.size, dtype=torch.float64)
        self._handles = [
            model.get_submodule(path).register_forward_pre_hook(partial(self._see, affine))
            for path, affine in self._affine.items()
        ]

    def _see(self, affine: Affine, _: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach().reshape(-1, self._sum.shape[0]).float()
        unit = _normalised(x, affine.is_centred, affine.eps)
        self._sum += (unit.T @ unit).double().cpu() / len(self._affine)

    def stop(self) -> None:
        """Look away."""
        for handle in self._handles:
            handle.remove()

    def directions(self) -> tuple[Tensor, Tensor]:
        """Return an orthonormal matrix whose columns are the directions, and the share of each, the largest first.

        Raises:
            NonFiniteError: what was seen is NaN or infinite.
        """
        if not bool(self._sum.isfinite().all()):
            first = next(iter(self._affine))
            raise NonFiniteError(
                f"what {first} or another normalisation of its stream gives is NaN or infinite on the data; nothing was"
                " rotated. Look at the data and at the weights"
            )
        shares, directions = torch.linalg.eigh(self._sum)
        return directions.flip(1), (shares.flip(0) / shares.sum()).clamp(min=0)


def turn_first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Turn the first tensor that a module gets: a hook of the module behind which a stream begins."""
    turn: nn.Linear = module.stream_turn  # type: ignore[assignment]
    if args:
        return (turn(args[0]), *args[1:]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: turn(kwargs[name])}


class ExactChange(ABC):
    """A change in place after which a model computes the same: nothing is masked before it."""

    @abstractmethod
    def apply(self, model: nn.Module, undo: Undo) -> None:
        """Carry it out, and write down how it is taken back."""

    def mask(self, model: nn.Module) -> nn.Module:
        """Return the model as it is."""
        return model

    def rebuild(self, model: nn.Module) -> nn.Module:
        """Carry it out, and return the model."""
        self.apply(model, [])
        return model

    def prove(self, model: nn.Module, inputs: Arguments, tolerance: float) -> float:
        """Return the largest relative error between copies before and after, at float64 where the device has it.

        Raises:
            CompactionError: it is larger than the tolerance, or the model does not run.
        """
        errors = Comparison(model, self, inputs).errors(self, tolerance)
        return errors["float64" if "float64" in errors else "float32"]


@dataclass(frozen=True, eq=False)
class Turn(ExactChange):
    """A stream of a model, and how it is turned.

    Args:
        stream: what writes into it and reads it.
        directions: orthonormal, shape (width, width), float64.
    """

    stream: Stream
    directions: Tensor

    def prove(self, model: nn.Module, inputs: Arguments, tolerance: float) -> float:
        """Return the largest relative error; see :meth:`ExactChange.prove`."""
        dense = plain_copy(model).double()
        for path in self.stream.norms:
            if not isinstance(norm := dense.get_submodule(path), nn.LayerNorm | nn.RMSNorm):
                _put(dense, norm, _Exact(Affine.of(norm, self.stream.size)), [])
        return super().prove(dense, inputs, tolerance)

    @torch.no_grad()
    def apply(self, model: nn.Module, undo: Undo) -> None:
        """Turn the stream in place.

        Changes:
            the values of writers and readers, normalisations (each becomes ``nn.RMSNorm`` without a vector), biases of
            readers that had none, a tied reader (which gets a weight of its own); the log.
        """
        stream, q = self.stream, self.directions
        affine = {path: Affine.of(model.get_submodule(path), stream.size) for path in stream.norms}
        centred = {a.is_centred for a in affine.values()}
        if len(centred) > 1:
            raise CompactionError("some of the normalisations of the stream take its mean away and others do not")
        is_centred = centred.pop()
        if is_centred and (raw := next((r.where for r in stream.readers if not r.norm), None)):
            raise CompactionError(f"{raw} reads the stream with its mean, which the normalisations take away")
        # a weight that is shared is turned once
        readers = {r.weight[0]: r for r in [self._own(model, reader, undo) for reader in stream.readers]}.values()
        change = partial(set_values, model, undo)
        for scale in stream.scales:
            vector = dense_names(model)[scale.name].detach().double().flatten()
            for name, axis in scale.writers:
                change(name, lambda x, a=axis, v=vector: _along(x, a, v))
            change(scale.name, torch.ones_like)
        into = q.T - q.T.mean(1, keepdim=True) if is_centred else q.T
        for name, axis in stream.writers:
            change(name, lambda x, a=axis: _mapped(x, a, into))
        for reader in readers:
            a = affine.get(reader.norm)
            if a is not None and bool(a.offset.any()):
                self._add_offset(model, reader, a.offset, undo)
            gain = torch.ones(stream.size, dtype=q.dtype) if a is None else a.gain
            change(reader.weight[0], lambda x, at=reader.weight[1], g=gain: _mapped(_along(x, at, g), at, q.T))
        if stream.entrance:
            module = model.get_submodule(stream.entrance)
            _remember(module, undo)
            like = next(module.parameters())
            turn = nn.Linear(stream.size, stream.size, bias=False, device=like.device, dtype=like.dtype)
            turn.weight.copy_(into)
            module.stream_turn = turn
            module.register_forward_pre_hook(turn_first, with_kwargs=True)
        for path, a in affine.items():
            self._replace(model, path, a, undo)

    def _own(self, model: nn.Module, reader: Reader, undo: Undo) -> Reader:
        """Return the reader, with a weight of its own where an embedding holds the same one."""
        name, axis = reader.weight
        if (name, axis) not in self.stream.writers:
            return reader
        module = model.get_submodule(reader.where)
        if not isinstance(module, nn.Linear):
            raise CompactionError(f"{reader.where} reads with {name}, which also writes, and is no nn.Linear")
        _remember(module, undo)
        module.weight = nn.Parameter(module.weight.detach().clone(), module.weight.requires_grad)
        return Reader((f"{reader.where}.weight", axis), reader.bias, reader.norm, reader.where)

    @staticmethod
    def _add_offset(model: nn.Module, reader: Reader, offset: Tensor, undo: Undo) -> None:
        """Let the bias of a reader take over what the normalisation before it adds."""
        weight = dense_names(model)[reader.weight[0]].detach().double()
        added = torch.movedim(weight, reader.weight[1], -1) @ offset.to(weight.device)
        added = added.flatten(1).sum(1) if added.dim() > 1 else added
        if reader.bias:
            set_values(model, undo, reader.bias, lambda x: x + added)
            return
        module, name = locate(model, reader.weight[0])
        bias = name.replace("weight", "bias")
        if not isinstance(module, nn.Linear | nn.MultiheadAttention) or getattr(module, bias, 0) is not None:
            raise CompactionError(f"{reader.where} has no bias that could take over what {reader.norm} adds")
        _remember(module, undo)
        like: nn.Parameter = getattr(module, name)
        setattr(module, bias, nn.Parameter(added.to(like.dtype), like.requires_grad))

    def _replace(self, model: nn.Module, path: str, affine: Affine, undo: Undo) -> None:
        """Put an ``nn.RMSNorm`` in the place of a normalisation, wherever the model holds it."""
        old = model.get_submodule(path)
        like = next(model.parameters())
        new = nn.RMSNorm(self.stream.size, affine.eps, device=like.device, dtype=like.dtype).train(old.training)
        new.register_parameter("bias", None)  # which torch's transformer layers look at
        for parameter in new.parameters():
            parameter.requires_grad_(any(p.requires_grad for p in old.parameters()) or not list(old.parameters()))
        _put(model, old, new, undo)
        for parent in model.modules():
            if isinstance(parent, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                # whose fast path computes a layer norm without asking the module (torch 2.13)
                _remember(parent, undo)
                parent.__dict__["activation_relu_or_gelu"] = 0


class _Exact(nn.Module):
    """Computes at any precision what a class computes at float32 alone, for a proof at float64."""

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.affine, self.eps = affine, affine.eps

    def forward(self, x: Tensor) -> Tensor:
        a = self.affine
        return _normalised(x, a.is_centred, a.eps) * a.gain.to(x) + a.offset.to(x)


def _put(model: nn.Module, old: nn.Module, new: nn.Module, undo: Undo) -> None:
    """Put a module in the place of another, wherever the model holds it."""
    for parent in list(model.modules()):
        for name in [name for name, child in parent.named_children() if child is old]:
            _remember(parent, undo)
            setattr(parent, name, new)


def _remember(module: nn.Module, undo: Undo) -> None:
    """Write down what a module holds, before it is changed."""
    own = dict(vars(module))
    tables = {name: dict(table) for name, table in own.items() if isinstance(table, dict)}

    def put_back() -> None:
        vars(module).clear()
        vars(module).update(own)
        for name, entries in tables.items():
            own[name].clear()
            own[name].update(entries)

    undo.append(put_back)


def set_values(model: nn.Module, undo: Undo, name: str, change: Any) -> None:  # noqa: ANN401
    """Give a parameter or buffer another value, computed at float64 and rounded once for each step."""
    named = dense_names(model)
    tensor = named[first_names(model).get(name, name)] if name not in named else named[name]
    undo.append(partial(set_tensor, tensor, tensor.data, tensor.grad))
    set_tensor(tensor, change(tensor.detach().double()).to(tensor.dtype), tensor.grad)


def _along(x: Tensor, axis: int, vector: Tensor) -> Tensor:
    return x * vector.to(x.device).reshape([-1 if at == axis else 1 for at in range(x.dim())])


def _mapped(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply each vector along an axis with a matrix."""
    return (x.movedim(axis, -1) @ matrix.T.to(x.device)).movedim(-1, axis).contiguous()
