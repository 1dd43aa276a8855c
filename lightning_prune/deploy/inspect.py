"""What a .pte holds, read without running it."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_prune.deploy.program.arguments import check_seconds, program_path
from lightning_prune.deploy.program.signature import describe_shape
from lightning_prune.deploy.runtime.child import TIMEOUT
from lightning_prune.deploy.runtime.child_program import checked_manifest, read_contents
from lightning_prune.errors import ExportError


@dataclass(frozen=True)
class Value:
    """One input or output of a method.

    Args:
        name: from the manifest; without one ``input_0``.
        shape: of a tensor, the largest where it is dynamic; None for anything else.
        dtype: of a tensor, or the kind of anything else.
        is_dynamic: whether smaller sizes are taken too.
        constant: what a constant method always gives.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    is_dynamic: bool = False
    constant: str | int | float | bool | None = None

    def __str__(self) -> str:
        if self.shape is None:
            return repr(self.constant) if self.constant is not None else f"{self.name} {self.dtype}"
        return f"{self.name} {'up to ' if self.is_dynamic else ''}{describe_shape(self.shape)} {self.dtype}"


@dataclass(frozen=True)
class Delegate:
    """A part of a method that a backend runs.

    Args:
        backend: its name in the runtime.
        calls: how often the method calls it.
        bytes: of what the file holds for it, weights that stand elsewhere in the file left out.
        operators: operators inside by name and count; None where only the backend can read them.
    """

    backend: str
    calls: int
    bytes: int
    operators: Mapping[str, int] | None


@dataclass(frozen=True)
class MethodContents:
    """One method.

    Args:
        name: of the method.
        inputs: that it takes.
        outputs: that it gives.
        delegates: in the order of the file.
        outside: operators that no backend runs -> number of calls.
        planned_bytes: memory for what is computed, weights left out.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    delegates: tuple[Delegate, ...]
    outside: Mapping[str, int]
    planned_bytes: int

    @property
    def delegated_share(self) -> float | None:
        """Share of the operators that are inside delegates; None where a delegate cannot be read or there is none."""
        inside = [one.operators for one in self.delegates]
        if any(operators is None for operators in inside):
            return None
        within = sum(sum(operators.values()) for operators in inside if operators is not None)
        total = within + sum(self.outside.values())
        return within / total if total else None

    def __str__(self) -> str:
        rows = {
            "inputs": ", ".join(map(str, self.inputs)),
            "outputs": ", ".join(map(str, self.outputs)),
            "delegates": self._delegated(),
            "outside": f"{_calls(sum(self.outside.values()))}: {_counted(self.outside)}" if self.outside else "",
            "memory": f"{self.planned_bytes:,} bytes planned" if self.planned_bytes else "",
        }
        return "\n".join([f"  {self.name}", *(f"    {name:<12}{text}" for name, text in rows.items() if text)])

    def _delegated(self) -> str:
        share = self.delegated_share
        found = [_within(one) for one in self.delegates] or (["none"] if self.outside else [])
        return "; ".join(found) + (f" - {share:.0%} of the operators" if share is not None and self.delegates else "")


@dataclass(frozen=True)
class Inspection:
    """A .pte, read and not run; ``str()`` of it is a page.

    Args:
        path: of the file.
        size_bytes: of the file.
        sha256: of the file.
        is_verified: whether a manifest stands beside it and describes this very file; False: there is none.
        methods: in the order of the file.
        constant_bytes: of all weights in the file that can be read.
        numbers: how many numbers these are.
        zeros: how many of them are zero.
        unread_bytes: of weights that only a backend can read.
        data: files with weights that stand outside of the .pte, as its manifest says -> bytes.
    """

    path: Path
    size_bytes: int
    sha256: str
    is_verified: bool
    methods: tuple[MethodContents, ...]
    constant_bytes: int
    numbers: int
    zeros: int
    unread_bytes: int
    data: Mapping[str, int] = field(default_factory=dict)

    @property
    def sparsity(self) -> float | None:
        """Share of zeros among the numbers that can be read; None where there are none."""
        return self.zeros / self.numbers if self.numbers else None

    def __getitem__(self, name: str) -> MethodContents:
        """Return a method by name.

        Raises:
            KeyError: there is none.
        """
        found = {method.name: method for method in self.methods}
        if name not in found:
            raise KeyError(f"{self.path} has no method {name!r}: its methods are {', '.join(found)}")
        return found[name]

    def __str__(self) -> str:
        beside = self.path.with_suffix(".json").name
        manifest = f"verified ({beside})" if self.is_verified else f"*unverified*: no {beside} beside it"
        weights = f"{self.constant_bytes:,} bytes, {self.numbers:,} numbers"
        weights += f", {self.sparsity:.1%} zero" if self.sparsity is not None else ""
        weights += f"; {self.unread_bytes:,} bytes that only their backend can read" if self.unread_bytes else ""
        weights += "".join(f"; {size:,} bytes in {name}" for name, size in self.data.items())
        rows = {"size": f"{self.size_bytes:,} bytes", "sha256": self.sha256, "manifest": manifest, "weights": weights}
        lines = [str(self.path), *(f"  {name:<14}{text}" for name, text in rows.items())]
        return "\n".join([*lines, *map(str, self.methods)])


def inspect(path: str | Path, *, timeout: float = TIMEOUT) -> Inspection:
    """Read a .pte, without running it, in a process of its own.

    Args:
        path: of the .pte. A manifest beside it must describe it; without one the file counts as unverified.
        timeout: seconds after which reading it is given up.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the path does not end in .pte, or there is no time.
        TypeError: an argument is of another type.
        ExportError: it is not the file that its manifest describes, or no .pte that can be read.
        ImportError: ExecuTorch is not installed.

    Example:
        >>> print(inspect("digits.pte"))  # doctest: +SKIP
    """
    path = program_path(path)
    check_seconds("timeout", timeout)
    manifest = checked_manifest(path)
    found = read_contents(path, timeout)
    data = path.read_bytes()
    try:
        weights = found["constants"]
        methods = tuple(_method(one, manifest or {}) for one in found["methods"])
        return Inspection(
            path=path,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            is_verified=manifest is not None,
            methods=methods,
            constant_bytes=weights["bytes"],
            numbers=weights["elements"],
            zeros=weights["zeros"],
            unread_bytes=weights["unread_bytes"],
            data={one["file"]: one["size_bytes"] for one in (manifest or {}).get("data", ())},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path} holds what no .pte holds ({error}): it is damaged; export it again") from error


def _method(found: Mapping[str, Any], manifest: Mapping[str, Any]) -> MethodContents:
    known = manifest.get("methods", {}).get(found["name"], {})
    delegates = (Delegate(one["backend"], one["calls"], one["bytes"], one["operators"]) for one in found["delegates"])
    return MethodContents(
        name=found["name"],
        inputs=_values("input", found["inputs"], known.get("inputs", ())),
        outputs=_values("output", found["outputs"], known.get("outputs", ())),
        delegates=tuple(delegates),
        outside=found["outside"],
        planned_bytes=sum(found["planned_bytes"]),
    )


def _values(kind: str, found: Any, known: Any) -> tuple[Value, ...]:  # noqa: ANN401
    names = [kind] if len(found) == 1 else [f"{kind}_{index}" for index in range(len(found))]
    if len(known) == len(found):
        names = [one["name"] for one in known]
    return tuple(_value(name, one) for name, one in zip(names, found, strict=True))


def _value(name: str, found: Mapping[str, Any]) -> Value:
    if "shape" not in found:
        return Value(name, None, found["kind"], constant=found["value"])
    if math.prod(found["shape"]) < 0:
        raise ValueError(f"{name} has the shape {found['shape']}")
    return Value(name, tuple(found["shape"]), found["dtype"], found["is_dynamic"])


def _within(delegate: Delegate) -> str:
    times = f"{delegate.backend}, {_calls(delegate.calls)}"
    if delegate.operators is None:
        return f"{times} ({delegate.bytes:,} bytes that only it can read)"
    return f"{times} ({_counted(delegate.operators)})"


def _calls(count: int) -> str:
    return f"{count} call" + ("s" if count != 1 else "")


def _counted(names: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in names.items())
