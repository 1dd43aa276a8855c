"""What an export gives: the artifact as a value, and the manifest beside the .pte."""

import dataclasses
import hashlib
import json
import math
import platform
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lightning_prune._version import __version__
from lightning_prune.deploy.backends import Backend
from lightning_prune.deploy.signature import TensorSpec
from lightning_prune.deploy.verification import Verification
from lightning_prune.errors import ExportError

FORMAT = 1
"""Version of the manifest's layout; a reader refuses a larger one."""


@dataclass(frozen=True)
class Artifact:
    """A .pte that was run and found to compute what the model computes.

    Args:
        path: of the .pte.
        manifest_path: of the .json beside it, with the same facts for the app.
        backend: that it was lowered to.
        model: class name of the exported model.
        size_bytes: of the .pte.
        zipped_bytes: of the .pte after deflate at level 9, as in a download.
        sha256: of the .pte, in hexadecimal.
        parameters: number of parameters of the folded model.
        nonzero_parameters: how many of them are not zero.
        macs: multiply-accumulates of one run on the example inputs.
        inputs: names, shapes and dtypes, in the order of the call.
        outputs: the same of what comes back.
        verification: what was measured when the file ran beside the eager model.
        labels: names of the classes, if given.
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
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    verification: Verification
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def max_abs_error(self) -> float:
        """Largest absolute difference of any output from the eager model, over all that was run."""
        return self.verification.max_abs_error

    @property
    def metrics(self) -> Mapping[str, float]:
        """``{"eager": …, "executorch": …}``: the metric on ``verify_on``; empty without one."""
        return self.verification.metrics

    @property
    def verified_samples(self) -> int:
        """Number of samples of ``verify_on`` that were run, the example inputs left out."""
        return self.verification.samples

    @property
    def changed_predictions(self) -> int | None:
        """On how many of these the top-1 class differs from the eager model's; None where there are no classes."""
        return self.verification.changed_predictions

    @property
    def sparsity(self) -> float:
        """Share of zeros among the parameters, in [0, 1]."""
        return 1 - self.nonzero_parameters / self.parameters if self.parameters else 0.0

    def __str__(self) -> str:
        rows = {
            "backend": str(self.backend),
            "size": f"{self.size_bytes:,} bytes ({self.zipped_bytes:,} zipped)",
            "sha256": self.sha256,
            "parameters": f"{self.parameters:,} ({self.sparsity:.1%} zero)",
            "MACs": f"{self.macs:,}",
            "inputs": ", ".join(map(str, self.inputs)),
            "outputs": ", ".join(map(str, self.outputs)),
            "max abs error": _accepted(self.verification),
        }
        if self.verified_samples:
            rows["verified on"] = _verified(self)
        if self.metrics:
            rows["metric"] = ", ".join(f"{where} {value:.4f}" for where, value in self.metrics.items())
        lines = [str(self.path), *(f"  {name:<14}{value}" for name, value in rows.items())]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def manifest(self) -> dict[str, Any]:
        """Return the manifest as plain values, always in the same order of keys."""
        labels = {} if self.labels is None else {"labels": list(self.labels)}
        return {
            "format": FORMAT,
            "program": self.path.name,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "zipped_bytes": self.zipped_bytes,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [
                spec.to_json() | {"max_abs_error": self.verification.errors[spec.name]} for spec in self.outputs
            ],
            **labels,
            "backend": {"name": self.backend.name, "options": _options(self.backend)},
            "model": {
                "class": self.model,
                "parameters": self.parameters,
                "nonzero_parameters": self.nonzero_parameters,
                "sparsity": self.sparsity,
                "macs": self.macs,
            },
            "verification": {
                "tolerance": self.verification.tolerance,
                "max_abs_error": self.max_abs_error,
                "samples": self.verified_samples,
                "changed_predictions": self.changed_predictions,
                "metrics": {side: value if math.isfinite(value) else None for side, value in self.metrics.items()},
            },
            "notes": list(self.notes),
            "versions": versions(),
        }


def _accepted(verification: Verification) -> str:
    return f"{verification.max_abs_error:.2g} from the eager model (tolerance {verification.tolerance:g})"


def _verified(artifact: Artifact) -> str:
    samples = f"{artifact.verified_samples:,} samples"
    if artifact.changed_predictions is None:
        return samples
    return f"{samples}, {artifact.changed_predictions:,} changed predictions"


def _options(backend: Backend) -> dict[str, Any]:
    if not dataclasses.is_dataclass(backend) or isinstance(backend, type):
        return {}
    return {f.name: _plain(getattr(backend, f.name)) for f in dataclasses.fields(backend)}


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def versions() -> dict[str, str]:
    """Return the versions that made a file: lightning_prune, torch, executorch, python."""
    return {
        "lightning_prune": __version__,
        "torch": torch.__version__,
        "executorch": metadata.version("executorch"),
        "python": platform.python_version(),
    }


def file_facts(path: Path) -> dict[str, Any]:
    """Return ``size_bytes``, ``zipped_bytes`` and ``sha256`` of a file."""
    data = path.read_bytes()
    return {
        "size_bytes": len(data),
        "zipped_bytes": len(zlib.compress(data, level=9)),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def to_text(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as the text of its file."""
    return json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def load_manifest(path: str | Path) -> dict[str, Any]:
    """Read the manifest of a .pte and check that it describes this .pte.

    Args:
        path: of the .json or of the .pte beside it. Where only the .json is left it is read alone.

    Returns:
        the manifest; see :meth:`Artifact.manifest` for its keys.

    Raises:
        FileNotFoundError: no manifest there.
        ExportError: it is malformed or of a newer format, or the .pte has another size or sha256.
    """
    manifest_path = Path(path).with_suffix(".json")
    program = Path(path).with_suffix(".pte")
    manifest = _parsed(manifest_path)
    if program.is_file():
        data = program.read_bytes()
        if len(data) != manifest["size_bytes"] or hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise ExportError(
                f"{program} is not the file that {manifest_path.name} describes (its size or sha256 differs): copy both"
                " files again, or export the model again"
            )
    return manifest


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no manifest at {path}: export writes it beside the .pte")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        newest = manifest["format"]
        complete = {"size_bytes", "sha256", "inputs", "outputs"} <= manifest.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is not a manifest of lightning_prune: export the model again") from error
    if not isinstance(newest, int) or not complete:
        raise ExportError(f"{path} is not a complete manifest of lightning_prune: export the model again")
    if newest > FORMAT:
        raise ExportError(
            f"{path} is of manifest format {newest}, and lightning_prune {__version__} reads up to {FORMAT}:"
            " pip install --upgrade lightning-prune"
        )
    return manifest
