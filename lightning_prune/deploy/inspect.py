"""What a .pte holds, read without running it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_prune.deploy.artifact.manifest import methods_of, sha256_of
from lightning_prune.deploy.program.arguments import check_seconds, program_path
from lightning_prune.deploy.program.signature import Feed, check_methods_told, check_told, describe_shape
from lightning_prune.deploy.runtime.child import TIMEOUT
from lightning_prune.deploy.runtime.model import checked_manifest, read_contents
from lightning_prune.errors import ExportError
from lightning_prune.model.state import State
from lightning_prune.tables import escaped


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
            return repr(self.constant) if self.constant is not None else escaped(f"{self.name} {self.dtype}")
        return escaped(f"{self.name} {'up to ' if self.is_dynamic else ''}{describe_shape(self.shape)} {self.dtype}")


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
        planned_bytes: memory that ExecuTorch sets aside for what is computed outside of delegates and at their borders.
        memory_bytes: what the program takes of the memory while it runs: what is planned, and what XNNPACK holds, its
            weights among it; those that stay in the mapped file do not count, and of the blocks in which its parts
            compute the largest does, which they share. None where a delegate does not tell.
        feeds: which outputs are inputs of the next call, as its manifest says.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    delegates: tuple[Delegate, ...]
    outside: Mapping[str, int]
    planned_bytes: int
    memory_bytes: int | None = None
    feeds: tuple[Feed, ...] = ()

    @property
    def delegated_share(self) -> float | None:
        """Share of the operators that are inside delegates; None where a delegate cannot be read or there is none."""
        inside = [delegate.operators for delegate in self.delegates]
        if any(operators is None for operators in inside):
            return None
        within = sum(sum(operators.values()) for operators in inside if operators is not None)
        total = within + sum(self.outside.values())
        return within / total if total else None

    def __str__(self) -> str:
        parts = []
        for delegate in self.delegates:
            within = f"{delegate.bytes:,} bytes that only it can read"
            within = within if delegate.operators is None else _counted(delegate.operators)
            parts.append(f"{escaped(delegate.backend)}, {_calls(delegate.calls)} ({within})")
        share = self.delegated_share if self.delegates else None
        delegated = "; ".join(parts or (["none"] if self.outside else []))
        taken = "" if self.memory_bytes is None else f"{self.memory_bytes:,} bytes while it runs, of which "
        rows = {
            "inputs": ", ".join(map(str, self.inputs)),
            "outputs": ", ".join(map(str, self.outputs)),
            "feeds": "; ".join(escaped(str(feed)) for feed in self.feeds),
            "delegates": delegated + (f" - {share:.0%} of the operators" if share is not None else ""),
            "outside": f"{_calls(sum(self.outside.values()))}: {_counted(self.outside)}" if self.outside else "",
            "memory": f"{taken}{self.planned_bytes:,} bytes planned" if self.planned_bytes else "",
        }
        return "\n".join([f"  {escaped(self.name)}", *(f"    {name:<12}{text}" for name, text in rows.items() if text)])


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
        data: files with weights outside of the .pte, as its manifest says, or else the one beside it -> bytes.
        is_external: whether some of its weights stand outside of it.
        state: buffers that it keeps from call to call, as its manifest says.
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
    is_external: bool = False
    state: tuple[State, ...] = ()

    @property
    def sparsity(self) -> float | None:
        """Share of zeros among the numbers that can be read; None where there are none."""
        return self.zeros / self.numbers if self.numbers else None

    def __getitem__(self, name: str) -> MethodContents:
        """Return a method by name.

        Raises:
            KeyError: there is none.
        """
        methods = {method.name: method for method in self.methods}
        if name not in methods:
            raise KeyError(f"{self.path} has no method {name!r}: its methods are {', '.join(methods)}")
        return methods[name]

    def __str__(self) -> str:
        beside = self.path.with_suffix(".json").name
        manifest = f"verified ({beside})" if self.is_verified else f"*unverified*: no {beside} beside it"
        weights = f"{self.constant_bytes:,} bytes, {self.numbers:,} numbers"
        weights += f", {self.sparsity:.1%} zero" if self.sparsity is not None else ""
        weights += f"; {self.unread_bytes:,} bytes that only their backend can read" if self.unread_bytes else ""
        weights += "".join(f"; {size:,} bytes in {escaped(name)}" for name, size in self.data.items())
        if self.is_external and not self.data:
            weights += f"; others in a .ptd file, which is missing: there is no {self.path.with_suffix('.ptd').name}"
        rows = {"size": f"{self.size_bytes:,} bytes", "sha256": self.sha256, "manifest": manifest, "weights": weights}
        rows |= {"state": "; ".join(escaped(str(each)) for each in self.state)} if self.state else {}
        lines = [escaped(self.path), *(f"  {name:<14}{text}" for name, text in rows.items())]
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
    contents = read_contents(path, timeout)
    beside = path.with_suffix(".ptd")
    apart = {entry["file"]: entry["size_bytes"] for entry in (manifest or {}).get("data", ())}
    if manifest is None and contents["is_external"] and beside.is_file():
        apart = {beside.name: beside.stat().st_size}
    try:
        weights = contents["constants"]
        methods = []
        described = {} if manifest is None else methods_of(manifest)
        if manifest is not None:
            taking = {method["name"]: method for method in contents["methods"] if method["inputs"]}
            check_methods_told(path, manifest["methods"], taking)
            for name, spec in described.items():
                sides = (taking[name][side] for side in ("inputs", "outputs"))
                check_told(path, spec, *([(x.get("shape", ()), x.get("dtype")) for x in side] for side in sides))
        for method in contents["methods"]:
            known = (manifest or {}).get("methods", {}).get(method["name"], {})
            delegates = (
                Delegate(each["backend"], each["calls"], each["bytes"], each["operators"])
                for each in method["delegates"]
            )
            methods.append(
                MethodContents(
                    name=method["name"],
                    inputs=_values("input", method["inputs"], known.get("inputs", ())),
                    outputs=_values("output", method["outputs"], known.get("outputs", ())),
                    delegates=tuple(delegates),
                    outside=method["outside"],
                    planned_bytes=method["planned_bytes"],
                    memory_bytes=method["memory_bytes"],
                    feeds=described[method["name"]].feeds if method["name"] in described else (),
                )
            )
        return Inspection(
            path=path,
            size_bytes=path.stat().st_size,
            sha256=sha256_of(path),
            is_verified=manifest is not None,
            methods=tuple(methods),
            constant_bytes=weights["bytes"],
            numbers=weights["elements"],
            zeros=weights["zeros"],
            unread_bytes=weights["unread_bytes"],
            data=apart,
            is_external=contents["is_external"],
            state=tuple(
                State(each["name"], tuple(each["shape"]), each["dtype"], each["first"])
                for each in (manifest or {}).get("state", ())
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path} holds what no .pte holds ({error}): it is damaged; export it again") from error


def _values(kind: str, described: Any, known: Any) -> tuple[Value, ...]:  # noqa: ANN401
    """Return inputs or outputs of a method, by the names that its manifest knows."""
    names = [kind] if len(described) == 1 else [f"{kind}_{index}" for index in range(len(described))]
    if len(known) == len(described):
        names = [value["name"] for value in known]
    values = []
    for name, value in zip(names, described, strict=True):
        if "shape" not in value:
            values.append(Value(name, None, value["kind"], constant=value["value"]))
            continue
        if math.prod(value["shape"]) < 0:
            raise ValueError(f"{name} has the shape {value['shape']}")
        values.append(Value(name, tuple(value["shape"]), value["dtype"], value["is_dynamic"]))
    return tuple(values)


def _calls(count: int) -> str:
    return f"{count} call" + ("s" if count != 1 else "")


def _counted(names: Mapping[str, int]) -> str:
    return ", ".join(escaped(name) + (f" ×{count}" if count > 1 else "") for name, count in names.items())
