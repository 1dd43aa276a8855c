"""What an export gives: the artifact as a value."""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_prune.deploy.artifact.manifest import FORMAT, load_manifest, sha256_of, versions
from lightning_prune.deploy.backends import Backend
from lightning_prune.deploy.checking.verification import Verification
from lightning_prune.deploy.program.methods import Method
from lightning_prune.deploy.program.picture import Picture
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.signature import MethodSpec, TensorSpec
from lightning_prune.deploy.quantization import Quantized
from lightning_prune.deploy.quantization.calibrated import described
from lightning_prune.tables import Table, Tabular

__all__ = ["Artifact", "DataFile", "load_manifest", "zipped_size"]

_PIECE = 2**22
"""Bytes: large beside the some hundred that each piece's own codes take."""


@dataclass(frozen=True)
class DataFile:
    """A .ptd file with the weights of a .pte beside it.

    Args:
        path: of the .ptd.
        size_bytes: of it.
        sha256: of it, in hexadecimal.
    """

    path: Path
    size_bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.path.name}, {self.size_bytes:,} bytes"

    def to_json(self) -> dict[str, Any]:
        """Return file name, sha256 and size as plain values."""
        return {"file": self.path.name, "sha256": self.sha256, "size_bytes": self.size_bytes}


@dataclass(frozen=True)
class Artifact(Tabular):
    """A .pte that was run and found to compute what the model computes.

    Args:
        path: of the .pte.
        manifest_path: of the .json beside it, with the same facts for the app.
        backend: that it was lowered to.
        model: class name of the exported model.
        size_bytes: of the .pte.
        zipped_bytes: of the .pte and its .ptd after deflate, as in a download; see :func:`zipped_size`.
        sha256: of the .pte, in hexadecimal.
        parameters: number of parameters of the folded model.
        nonzero_parameters: how many of them are not zero.
        macs: multiply-accumulates of one run on the example inputs.
        methods: what each method takes and gives, ``forward`` first.
        sources: where further methods are in the model, and what is folded in before them, by method.
        verification: what was measured when the file ran beside the eager model.
        data: the .ptd with the weights, where they are apart.
        state: what the program keeps from call to call: name, shape, dtype, first values and the methods that write it.
        labels: names of the classes, if given.
        generation: what runners of text read of a decoder, by the names of its constant methods; empty of others.
        preprocessing: that is folded in before the first input of ``forward``, if given.
        picture: how an app makes a camera's picture into that input, if given.
        quantized: what quantization found, by method; empty without one.
        notes: what to know about this model on this backend.
    """

    path: Path
    manifest_path: Path
    backend: Backend
    model: str
    size_bytes: int
    zipped_bytes: int
    sha256: str
    parameters: int
    nonzero_parameters: int
    macs: int
    methods: Mapping[str, MethodSpec]
    verification: Verification
    sources: Mapping[str, Method] = dataclasses.field(default_factory=dict)
    data: tuple[DataFile, ...] = ()
    state: tuple[Mapping[str, Any], ...] = ()
    labels: tuple[str, ...] | None = None
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Normalize | None = None
    picture: Picture | None = None
    quantized: Mapping[str, Quantized] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, shapes and dtypes that ``forward`` takes, in the order of the call."""
        return self.methods["forward"].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The same of what ``forward`` gives."""
        return self.methods["forward"].outputs

    @property
    def executed(self) -> str:
        """Name of the backend that ran for the verification: its own, or ``portable`` where it cannot run here."""
        return self.verification.executed

    @property
    def max_abs_error(self) -> float:
        """Largest absolute difference of any output from the eager model, over all that was run."""
        return self.verification.max_abs_error

    @property
    def sqnr_db(self) -> float:
        """Lowest signal-to-quantization-noise ratio of any output to the eager model, in dB; infinite where exact."""
        return self.verification.sqnr_db

    @property
    def metrics(self) -> Mapping[str, float]:
        """``{"eager": …, "executorch": …}``: the metric on ``verify_on``; empty without one."""
        return self.verification.metrics

    @property
    def verified_samples(self) -> int:
        """Number of samples or calls of ``verify_on`` that were run, the example inputs left out."""
        return self.verification.samples

    @property
    def changed_predictions(self) -> int | None:
        """On how many of these the top-1 class differs from the eager model's; None where there are no classes."""
        return self.verification.changed_predictions

    @property
    def sparsity(self) -> float:
        """Share of zeros among the parameters, in [0, 1]."""
        return 1 - self.nonzero_parameters / self.parameters if self.parameters else 0.0

    def table(self) -> Table:
        """Return a row for each fact, and the notes under them."""
        rows = {
            "backend": str(self.backend),
            "size": f"{self.size_bytes:,} bytes ({self.zipped_bytes:,} zipped)",
            **({"weights": ", ".join(map(str, self.data))} if self.data else {}),
            "sha256": self.sha256,
            "parameters": f"{self.parameters:,}" + (f" ({self.sparsity:.1%} zero)" if self.sparsity else ""),
            "MACs": f"{self.macs:,}",
        }
        for name, spec in self.methods.items():
            of = "" if name == "forward" else f" of {name}"
            rows[f"inputs{of}"] = ", ".join(map(str, spec.inputs))
            rows[f"outputs{of}"] = ", ".join(map(str, spec.outputs))
            rows |= {f"feeds{of}": "; ".join(map(str, spec.feeds))} if spec.feeds else {}
        if self.state:
            rows["state"] = ", ".join(f"{each['name']} {tuple(each['shape'])} {each['dtype']}" for each in self.state)
        rows |= {"quantized": "; ".join(map(str, self.quantized.values()))} if self.quantized else {}
        bounds, ratio = self.verification.bounds, ""
        accepted = [] if bounds.tolerance is None else [f"tolerance {bounds.tolerance:g}"]
        if bounds.min_sqnr is not None:
            accepted.append(f"lowest accepted {bounds.min_sqnr:g} dB")
            ratio = f" and {self.sqnr_db:.1f} dB"
        rows["error"] = (
            f"at most {self.max_abs_error:.2g}{ratio} from the eager model ({', '.join(accepted)}), run on"
            f" {self.executed}"
        )
        rows["verified on"] = self.verification.inputs
        if self.verified_samples:
            changed = self.changed_predictions
            rows["verified on"] = f"{self.verified_samples:,} samples" + (
                "" if changed is None else f", {changed:,} changed predictions"
            )
            if count := self.verification.sequences:
                rows["verified on"] = f"{self.verified_samples:,} calls in {count:,} sequences"
        if self.metrics:
            rows["metric"] = ", ".join(f"{where} {value:.4f}" for where, value in self.metrics.items())
        note = "\n".join(f"note: {note}" for note in self.notes)
        return Table(("file", str(self.path)), tuple(rows.items()), words=2, note=note)

    def __str__(self) -> str:
        rows = self.table().rows
        width = max(14, *(len(name) + 2 for name, _ in rows))
        lines = [str(self.path), *(f"  {name:<{width}}{value}" for name, value in rows)]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def manifest(self) -> dict[str, Any]:
        """Return the manifest as plain values, always in the same order of keys; its digest is set as it is written."""
        labels = {} if self.labels is None else {"labels": list(self.labels)}
        preprocessing = {} if self.preprocessing is None else {"preprocessing": self.preprocessing.to_json()}
        methods: dict[str, dict[str, Any]] = {}
        for name, spec in self.methods.items():
            source, errors = self.sources.get(name), self.verification.methods[name]
            methods[name] = {} if source is None else {"function": source.function}
            if source is not None and source.preprocess is not None:
                methods[name]["preprocessing"] = source.preprocess.to_json()
            methods[name]["inputs"] = [tensor.to_json() for tensor in spec.inputs]
            methods[name]["outputs"] = [tensor.to_json() | errors[tensor.name].to_json() for tensor in spec.outputs]
            methods[name] |= {"feeds": [feed.to_json() for feed in spec.feeds]} if spec.feeds else {}
        quantization = None
        if self.backend.quantization is not None:
            quantization = {
                "kind": type(self.backend.quantization).__name__,
                "options": _options(self.backend.quantization),
                "methods": {name: quantized.to_json() for name, quantized in self.quantized.items()},
            }
        return {
            "format": FORMAT,
            "digest": "",
            "program": self.path.name,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "zipped_bytes": self.zipped_bytes,
            "data": [data.to_json() for data in self.data],
            "methods": methods,
            **({"state": [dict(each) for each in self.state]} if self.state else {}),
            **labels,
            **({"generation": dict(self.generation)} if self.generation else {}),
            **preprocessing,
            **({} if self.picture is None else {"picture": self.picture.to_json()}),
            "backend": {"name": self.backend.name, "options": _options(self.backend)},
            "quantization": quantization,
            "model": {
                "class": self.model,
                "parameters": self.parameters,
                "nonzero_parameters": self.nonzero_parameters,
                "sparsity": self.sparsity,
                "macs": self.macs,
            },
            "verification": self.verification.to_json(),
            "notes": list(self.notes),
            "versions": versions(),
        }


def _options(value: object) -> dict[str, Any]:
    """Return the fields of a backend or a quantization as plain values: a loader in words, a function by its name."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    options = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for name, option in options.items():
        if isinstance(option, float) and not -1e300 < option < 1e300:  # JSON has neither NaN nor infinities
            options[name] = repr(option)
        elif isinstance(option, str | int | float | bool | None):
            continue
        elif callable(option) and hasattr(option, "__qualname__"):
            options[name] = f"{option.__module__}.{option.__qualname__}"
        else:
            is_loader = isinstance(option, Iterable) and not isinstance(option, tuple | Mapping)
            options[name] = described(option) if is_loader else repr(option)
    return options


def file_facts(path: Path) -> dict[str, Any]:
    """Return ``size_bytes`` and ``sha256`` of a file."""
    return {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}


def zipped_size(*paths: Path) -> int:
    """Return the bytes of files after deflate that seeks repetitions of the last byte alone.

    Weights repeat nothing but zeros: seeking further, as ``zip -9`` does, takes 30 times as long at 75 % zeros, for a
    size that is at most 2 % smaller. The pieces are deflated by themselves, on all cores.
    """

    def deflated(place: tuple[Path, int]) -> int:
        path, start = place
        with path.open("rb") as file:
            file.seek(start)
            piece = file.read(_PIECE)
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        return len(deflate.compress(piece)) + len(deflate.flush())

    pieces = [(path, start) for path in paths for start in range(0, path.stat().st_size, _PIECE)]
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(deflated, pieces))
