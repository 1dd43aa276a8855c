"""What an app needs in one folder: the verified program, its manifest, and sample code that checks and runs it."""

import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lightning_prune.deploy.artifact.artifact import Artifact
from lightning_prune.deploy.artifact.files import Replacement, replaced, writing
from lightning_prune.deploy.artifact.manifest import to_text, versions
from lightning_prune.deploy.backends import XNNPACK, Backend, CoreML, Vulkan
from lightning_prune.deploy.backends.base import check_backend
from lightning_prune.deploy.backends.coreml import RELEASES
from lightning_prune.deploy.export import export
from lightning_prune.deploy.program.picture import NO_PICTURE, takes_pictures
from lightning_prune.errors import ExportError

SAMPLE = Path(__file__).parent / "sample"
"""The sample code, a folder per language; the apps in the examples are built on copies of it."""

_DEFAULT_ANDROID = XNNPACK()
_DEFAULT_IOS = CoreML(deployment_target="iOS17")
_DEFAULT_FALLBACK = XNNPACK()
_RUNTIMES = {"1.4": ("1.4.1", "1.4.1"), "1.5": ("1.5.1", "1.5.0")}
"""Exporter -> runtimes of Android and of Apple's systems, since a runtime reads no newer exporter's programs. Maven has
no 1.5.0, and ExecuTorch no branch swiftpm-1.5.1 (November 2026); 1.5.1 differs from 1.5.0 in nothing that runs."""

_ANDROID_RUNTIME, _SWIFT_RUNTIME = "org.pytorch:executorch-android:1.4.1", "swiftpm-1.4.1"
_SWIFT_PLATFORMS = '.iOS("17.0"), .macOS("14.0")'
_OLDEST_IOS = 17
_SIZES = "| `model.pte` | … | … |"
"""The row of the samples' READMEs in whose place the programs of a bundle stand."""

_RESOURCES = "Sources/LightningPrune/Resources"


@dataclass(frozen=True)
class Bundle:
    """A folder to add to an app.

    Args:
        folder: a Gradle library module, or a Swift package; its README says how to add it.
        artifacts: the programs in it; the app loads the first, or the next where a device cannot load that.
        files: everything in it, sorted.
    """

    folder: Path
    artifacts: tuple[Artifact, ...]
    files: tuple[Path, ...]

    @property
    def artifact(self) -> Artifact:
        """The program that the app loads first."""
        return self.artifacts[0]

    def __str__(self) -> str:
        return "\n".join([f"{self.folder} ({len(self.files)} files)", *map(str, self.artifacts)])


def export_android(
    model: nn.Module, folder: str | Path, *, backend: Backend = _DEFAULT_ANDROID, **options: Any
) -> Bundle:
    """Export a model as a Gradle library module for an Android app.

    The module holds ``assets/model.pte`` and ``assets/model.json``, Kotlin code that checks and runs them in the
    ExecuTorch runtime for Android, and a README. After any error an older module is still in place.

    Args:
        model: as in :func:`export`.
        folder: of the module; its parent exists. A module of ours that stands there is replaced, unless files in it
            were added or changed since.
        backend: where the program will run.
        options: further arguments of :func:`export`, such as ``example_inputs``, ``labels`` and ``verify_on``.

    Returns:
        the folder, the artifact and the files.

    Raises:
        ValueError, TypeError, ImportError: as :func:`export`; also a backend or an option that Android has not.
        ExportError: as :func:`export`; also a folder with files that are not ours.
        VerificationError: as :func:`export`.

    Example:
        >>> image = torch.zeros(1, 1, 8, 8)  # doctest: +SKIP
        >>> bundle = export_android(model, "out", example_inputs=image)  # doctest: +SKIP
        >>> bundle.artifact.path  # doctest: +SKIP
        PosixPath('out/android/assets/model.pte')
    """
    check_backend(backend)
    if isinstance(backend, CoreML):
        raise ValueError("backend: got CoreML, which Android has not: pass XNNPACK() or Vulkan(), or call export_ios")
    if options.get("external_weights"):
        raise ValueError(
            "external_weights: got True, but ExecuTorch's Kotlin interface loads one file alone: leave it out, or"
            " export with export() and load both files from C++"
        )
    with replaced(folder) as place:
        _copy(SAMPLE / "kotlin", place.building, "build.gradle.kts", [_android_runtime(backend)])
        return _bundle(place, [_exported(model, place, "assets/model.pte", backend, options)])


def export_ios(
    model: nn.Module,
    folder: str | Path,
    *,
    backend: Backend = _DEFAULT_IOS,
    fallback: Backend | None = _DEFAULT_FALLBACK,
    **options: Any,
) -> Bundle:
    """Export a model as a Swift package for an iOS or macOS app.

    The package holds ``model.pte`` and ``model.json`` as resources, Swift code that checks and runs them in the
    ExecuTorch runtime for Apple's systems, and a README. After any error an older package is still in place.

    Args:
        model: as in :func:`export`.
        folder: of the package; its parent exists. A package of ours that stands there is replaced, unless files in it
            were added or changed since.
        backend: where the program will run.
        fallback: where a second program, ``fallback.pte``, runs that the app loads if a device cannot load the first.
            None, or the same backend: there is none.
        options: further arguments of :func:`export`, such as ``example_inputs``, ``labels`` and ``verify_on``; for
            both programs.

    Returns:
        the folder, the artifacts and the files.

    Raises:
        ValueError, TypeError, ImportError: as :func:`export`; also a backend that Apple's systems have not.
        ExportError: as :func:`export`; also a folder with files that are not ours.
        VerificationError: as :func:`export`.

    Example:
        >>> image = torch.zeros(1, 1, 8, 8)  # doctest: +SKIP
        >>> bundle = export_ios(model, "out", example_inputs=image)  # doctest: +SKIP
        >>> [artifact.backend.name for artifact in bundle.artifacts]  # doctest: +SKIP
        ['coreml', 'xnnpack']
    """
    check_backend(backend)
    if fallback is not None:
        check_backend(fallback, "fallback")
    backends = [backend] if fallback is None or fallback == backend else [backend, fallback]
    if any(isinstance(one, Vulkan) for one in backends):
        raise ValueError("backend: got Vulkan, which iOS has not: pass CoreML() or XNNPACK(), or call export_android")
    if isinstance(options.get("verify_on"), Iterator):
        options["verify_on"] = list(options["verify_on"])
    names = [f"{_RESOURCES}/{name}.pte" for name in ("model", "fallback")]
    with replaced(folder) as place:
        runtime = (_SWIFT_RUNTIME, f"swiftpm-{_runtimes()[1]}")
        _copy(SAMPLE / "swift", place.building, "Package.swift", [_swift_platforms(backends), runtime])
        exported = zip(names, backends, strict=False)
        return _bundle(place, [_exported(model, place, name, one, options) for name, one in exported])


def _exported(
    model: nn.Module, place: Replacement, name: str, backend: Backend, options: Mapping[str, Any]
) -> Artifact:
    path = place.building / name
    path.parent.mkdir(exist_ok=True)
    artifact = export(model, path, backend=backend, **options)
    image = artifact.methods["forward"].inputs[0]
    if artifact.picture is None and artifact.preprocessing is None and takes_pictures(image):
        artifact = dataclasses.replace(artifact, notes=(*artifact.notes, NO_PICTURE))
        with writing(artifact.manifest_path):
            artifact.manifest_path.write_text(to_text(artifact.manifest()), encoding="utf-8")
    final = place.folder / name
    data = tuple(dataclasses.replace(file, path=final.parent / file.path.name) for file in artifact.data)
    return dataclasses.replace(artifact, path=final, manifest_path=final.with_suffix(".json"), data=data)


def _bundle(place: Replacement, artifacts: Sequence[Artifact]) -> Bundle:
    sizes = [(a.path.name, a.size_bytes + sum(file.size_bytes for file in a.data), a.zipped_bytes) for a in artifacts]
    rows = "\n".join(f"| `{name}` | {size:,} | {zipped:,} |" for name, size, zipped in sizes)
    readme = place.building / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace(_SIZES, rows), encoding="utf-8")
    return Bundle(place.folder, tuple(artifacts), place.publish())


def _copy(sample: Path, folder: Path, name: str, changes: Iterable[tuple[str, str]]) -> None:
    try:
        shutil.copytree(sample, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in changes:
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ExportError(f"{folder.parent} cannot be written ({error}): nothing was changed") from error


def _runtimes() -> tuple[str, str]:
    exporter = versions()["executorch"]
    return _RUNTIMES.get(exporter.rpartition(".")[0], (exporter, exporter))


def _android_runtime(backend: Backend) -> tuple[str, str]:
    flavor = "-vulkan" if isinstance(backend, Vulkan) else ""
    return _ANDROID_RUNTIME, f"org.pytorch:executorch-android{flavor}:{_runtimes()[0]}"


def _swift_platforms(backends: Iterable[Backend]) -> tuple[str, str]:
    targets = [RELEASES[one.deployment_target] for one in backends if isinstance(one, CoreML)]
    ios = max([_OLDEST_IOS, *targets])
    macos = next(int(name.removeprefix("macOS")) for name, n in RELEASES.items() if n == ios and name[0] == "m")
    return _SWIFT_PLATFORMS, f'.iOS("{ios}.0"), .macOS("{macos}.0")'
