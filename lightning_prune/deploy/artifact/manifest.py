"""The JSON beside a .pte: written with a digest of itself, read with every check before the runtime sees the file."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lightning_prune._version import __version__
from lightning_prune.deploy.artifact._recovery import complete
from lightning_prune.deploy.program.arguments import given_path
from lightning_prune.deploy.program.generation import check_constants
from lightning_prune.deploy.program.picture import Picture
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.signature import DTYPES, Feed, MethodSpec, TensorSpec, describe_shape, holds
from lightning_prune.documents import parsed, typed
from lightning_prune.errors import ExportError
from lightning_prune.model.state import State
from lightning_prune.values import check_number, check_whole

FORMAT = 1
"""Version of the manifest's layout; a reader refuses a larger one."""

_MAX_BYTES = 8 * 2**20
_ZEROS = "0" * 64
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "program": str,
    "sha256": str,
    "size_bytes": int,
    "zipped_bytes": int,
    "data": list,
    "methods": dict,
    "backend": dict,
    "quantization": (dict, type(None)),
    "model": dict,
    "verification": dict,
    "notes": list,
    "versions": dict,
}


def versions() -> dict[str, str]:
    """Return the versions that made a file: lightning_prune, torch, executorch, python."""
    return {
        "lightning_prune": __version__,
        "torch": torch.__version__,
        "executorch": metadata.version("executorch"),
        "python": platform.python_version(),
    }


def to_text(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as the text of its file, with its digest in place.

    The digest is the sha256 of this very text, in UTF-8, with 64 zeros where the digest stands.

    Args:
        manifest: plain values; ``format`` first, ``digest`` is set here.
    """
    head = {"format": manifest["format"], "digest": _ZEROS}
    text = json.dumps(head | {k: v for k, v in manifest.items() if k not in head}, indent=2, ensure_ascii=False,
                      allow_nan=False) + "\n"  # fmt: skip
    return text.replace(_ZEROS, hashlib.sha256(text.encode()).hexdigest(), 1)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def load_manifest(path: str | Path) -> dict[str, Any]:
    """Read the manifest of a .pte and check that it describes this .pte and the .ptd files beside it.

    Args:
        path: of the .json or of the .pte beside it. Where only the .json is left it is read alone.

    Returns:
        the manifest; its keys are in the docs, on the page about the export.

    Raises:
        FileNotFoundError: no manifest there.
        TypeError: the path is none.
        ValueError: it is empty.
        ExportError: it is malformed, was changed after it was written, or is of a newer format; or the .pte or a .ptd
            has another size or sha256.
    """
    path = given_path(path)
    if not path.name:
        raise ValueError(f"path: got {str(path)!r}, must be that of a .pte or of the .json beside it")
    manifest_path, program = path.with_suffix(".json"), path.with_suffix(".pte")
    complete(manifest_path)
    if not manifest_path.is_file():
        if not manifest_path.is_symlink() and not manifest_path.exists():
            raise FileNotFoundError(f"no manifest at {manifest_path}: export writes it beside the .pte")
        # a folder, a device or a link to nothing must not count as no manifest
        kind = "a folder" if manifest_path.is_dir() else "no file" if manifest_path.exists() else "a link to nothing"
        raise ExportError(
            f"{manifest_path} is {kind}, where the manifest should be: remove it, or copy the manifest there"
        )
    data = _bytes(manifest_path)
    try:
        manifest = parsed(data.decode("utf-8"), is_strict=True)
    except ValueError as error:
        raise ExportError(
            f"{manifest_path} is not a manifest of lightning_prune (not JSON: {error}): export the model again"
        ) from error
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int or manifest["format"] < 1:
        raise ExportError(f"{manifest_path} is not a manifest of lightning_prune: export the model again")
    if manifest["format"] > FORMAT:
        raise ExportError(
            f"{manifest_path} is of manifest format {manifest['format']}, and lightning_prune {__version__} reads up to"
            f" {FORMAT}: pip install --upgrade lightning-prune"
        )
    digest = manifest.get("digest")
    if not isinstance(digest, str) or len(digest) != 64 or not digest.isascii():
        raise ExportError(
            f"{manifest_path} is not a complete manifest of lightning_prune (no digest): export the model again"
        )
    # The first place where the digest stands is its own: it is written right after the format.
    if hashlib.sha256(data.replace(digest.encode(), _ZEROS.encode(), 1)).hexdigest() != digest:
        raise ExportError(
            f"{manifest_path} was changed after it was written (its digest differs): copy it again, or export again"
        )
    try:
        _check_keys(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ExportError(
            f"{manifest_path} is not a complete manifest of lightning_prune ({error}): export the model again"
        ) from error
    if program.is_file():
        _check_file(program, manifest, manifest_path)
        for entry in manifest["data"]:
            _check_file(program.parent / entry["file"], entry, manifest_path)
    return manifest


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest that was written here, of whatever version and whatever became of it since."""
    try:
        found = parsed(_bytes(path).decode("utf-8"))
    except (ExportError, ValueError):
        return False
    return isinstance(found, dict) and type(found.get("format")) is int and {"digest", "program"} <= found.keys()


def methods_of(manifest: Mapping[str, Any]) -> dict[str, MethodSpec]:
    """Return what each method takes and gives, from a manifest that :func:`load_manifest` returned."""
    methods = {}
    for name, described in manifest["methods"].items():
        if not isinstance(described.get("function", ""), str):
            raise TypeError(f"function {described['function']!r:.60} is no name")
        inputs, outputs = (tuple(map(_spec, _list(described[side]))) for side in ("inputs", "outputs"))
        for one in inputs:
            if any(not low <= one.shape[dim] <= high for dim, (low, high) in one.dynamic.items()):
                raise ValueError(f"shape {describe_shape(one.shape)} of {one.name} is outside of its range")
        feeds = tuple(Feed(**feed) for feed in _list(described.get("feeds", [])))
        for feed in feeds:
            check_number(f"first of {feed.input!r:.60}", feed.first)
            pair = [[one for one in inputs if one.name == feed.input], [x for x in outputs if x.name == feed.output]]
            if [len(side) for side in pair] != [1, 1] or len({(x.shape, x.dtype) for (x,) in pair}) != 1:
                raise ValueError(f"output {feed.output!r:.60} cannot be input {feed.input!r:.60}")
            if not holds(pair[0][0].dtype, feed.first):
                raise ValueError(f"{feed.input!r:.60} cannot begin with {feed.first!r:.60}")
        if len({feed.input for feed in feeds}) < len(feeds):
            raise ValueError("an input is fed twice")
        methods[name] = MethodSpec(inputs, outputs, feeds)
    return methods


def data_paths(manifest: Mapping[str, Any], program: Path) -> tuple[Path, ...]:
    """Return the paths of the .ptd files that belong to a program."""
    return tuple(program.parent / entry["file"] for entry in manifest["data"])


def _check_file(path: Path, described: Mapping[str, Any], manifest: Path) -> None:
    if not path.is_file():
        raise ExportError(f"{path} is missing, and {manifest.name} says that its weights are there: copy it too")
    try:
        same = path.stat().st_size == described["size_bytes"] and sha256_of(path) == described["sha256"]
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}): allow reading it") from error
    if not same:
        raise ExportError(
            f"{path} is not the file that {manifest.name} describes (its size or sha256 differs): copy all files"
            " again, or export the model again"
        )


def _bytes(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise ExportError(f"{path} has {size:,} bytes, and no manifest of lightning_prune is above {_MAX_BYTES:,}")
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}): allow reading it") from error


def _check_keys(manifest: Mapping[str, Any]) -> None:
    for key, kind in _TYPES.items():
        if not isinstance(manifest[key], kind) or isinstance(manifest[key], bool):
            raise TypeError(f"{key} is {manifest[key]!r:.60}")
    for entry in manifest["data"]:
        name = entry["file"]
        if not isinstance(name, str) or not name or Path(name).name != name or name == ".." or "\0" in name:
            raise ValueError(f"data file {name!r:.60}")
        if type(entry["size_bytes"]) is not int or not isinstance(entry["sha256"], str):
            raise TypeError(f"data file {name}")
    for key in ("labels", "notes"):
        values = manifest.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise TypeError(f"{key} are no list of strings")
    if not manifest["methods"]:
        raise ValueError("no methods")
    methods = methods_of(manifest)
    if "generation" in manifest:
        check_constants(manifest["generation"], methods["forward"])
    for kept in _list(manifest.get("state", [])):
        typed(State, {field.name: kept[field.name] for field in fields(State)})
        for size in kept["shape"]:
            check_whole("a size of a state", size, 0)
        if not set(_list(kept["methods"])) <= set(methods):
            raise ValueError(f"{kept['name']!r:.60} is kept by other methods than those that there are")
    _check_options(manifest)
    if "picture" in manifest:
        Picture.from_json(manifest["picture"])


def _check_options(manifest: Mapping[str, Any]) -> None:
    """Check what readers make numbers and modules of."""
    verification, quantized = manifest["verification"], manifest["quantization"] or {}
    for name in ("tolerance", "min_sqnr_db"):
        if verification.get(name) is not None:
            check_number(name, verification[name])
    if not isinstance(quantized.get("methods", []), list | dict):
        raise TypeError(f"quantized methods {quantized['methods']!r:.60}")
    for described in (manifest, *manifest["methods"].values()):
        if (values := described.get("preprocessing")) is not None:
            Normalize(mean=values["mean"], std=values["std"])


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.60} is no list")
    return value


def _spec(described: Mapping[str, Any]) -> TensorSpec:
    name, shape, dtype = described["name"], tuple(map(_size, _list(described["shape"]))), DTYPES[described["dtype"]]
    if not isinstance(name, str):
        raise TypeError(f"name {name!r:.60}")
    dynamic = {int(dim): (_size(low), _size(high)) for dim, (low, high) in described.get("dynamic", {}).items()}
    if not all(0 <= dim < len(shape) and low <= high for dim, (low, high) in dynamic.items()):
        raise ValueError(f"dynamic dimensions of {name}")
    return TensorSpec(name, shape, dtype, dynamic)


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:  # that of a tensor is a 64-bit integer
        raise TypeError(f"size {value!r:.60}")
    return value
