"""Damaged .pte and manifest files: a clear error beside their original partner, never a crash of this process."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, exported, small
from mutants import mutants

from lightning_prune.deploy import Artifact, benchmark, export, inspect, verify
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.errors import ExportError

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")

TIMEOUT = 20.0
UNCLEAR = re.compile(r"^.{0,40}$|Traceback|^None|object at 0x")
LOOKS: dict[str, Callable[[Path], object]] = {
    "inspect": lambda path: inspect(path, timeout=TIMEOUT),
    "verify": lambda path: verify(path, small(), EXAMPLE, timeout=TIMEOUT),
    "benchmark": lambda path: benchmark(path, rounds=1, timeout=TIMEOUT),
}
full = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("mutation"))


def refused(path: Path, what: str) -> None:
    """All three refuse the file with a clear error before the other process is asked anything."""
    CHILD.close()
    for name, look in LOOKS.items():
        with pytest.raises(ExportError) as caught:
            look(path)
        assert str(path.with_suffix("")) in str(caught.value), (what, name)
        assert not UNCLEAR.search(str(caught.value)), (what, name)
    assert CHILD._process is None, what


def survived(path: Path) -> dict[str, str]:
    """Return what each of the three said of a file without a manifest: nothing, or a clear error."""
    said = {}
    for name, look in LOOKS.items():
        try:
            look(path)
            said[name] = ""
        except ExportError as error:
            said[name] = str(error)
            assert str(path) in said[name]
            assert not UNCLEAR.search(said[name])
        except ValueError as error:  # the file says that it takes other inputs than the example
            said[name] = str(error)
            assert re.search(r"a.pte takes .*; got", said[name])
    return said


def beside_their_manifest(artifact: Artifact, folder: Path, count: int) -> None:
    manifest = artifact.manifest_path.read_bytes()
    (folder / "a.json").write_bytes(manifest)
    for what, data in mutants(artifact.path.read_bytes(), count, seed=1):
        (folder / "a.pte").write_bytes(data)
        refused(folder / "a.pte", what)


def manifests_beside_their_file(artifact: Artifact, folder: Path, count: int) -> None:
    (folder / "a.pte").write_bytes(artifact.path.read_bytes())
    for what, data in mutants(artifact.manifest_path.read_bytes(), count, seed=2):
        (folder / "a.json").write_bytes(data)
        refused(folder / "a.pte", what)


def without_manifest(artifact: Artifact, folder: Path, count: int, seed: int) -> None:
    for what, data in mutants(artifact.path.read_bytes(), count, seed):
        (folder / "a.pte").write_bytes(data)
        said = survived(folder / "a.pte")
        assert all(said.values()) or data[4:8] == b"ET12", (what, said)


def still_works(artifact: Artifact) -> None:
    assert inspect(artifact.path).is_verified
    assert verify(artifact.path, small(), torch.randn(4, 1, 8, 8)).max_abs_error <= 1e-4


def test_some_beside_their_manifest(artifact: Artifact, tmp_path: Path):
    beside_their_manifest(artifact, tmp_path, 22)


def test_some_manifests_beside_their_file(artifact: Artifact, tmp_path: Path):
    manifests_beside_their_file(artifact, tmp_path, 22)


def test_some_without_manifest(artifact: Artifact, tmp_path: Path):
    without_manifest(artifact, tmp_path, 11, seed=3)
    still_works(artifact)


def test_files_of_two_models_exchanged(artifact: Artifact, tmp_path: Path):
    other = export(small(seed=4), tmp_path / "other.pte", example_inputs=EXAMPLE)
    (tmp_path / "a.pte").write_bytes(artifact.path.read_bytes())
    (tmp_path / "a.json").write_bytes(other.manifest_path.read_bytes())
    refused(tmp_path / "a.pte", "exchanged")


@full
def test_beside_their_manifest(artifact: Artifact, tmp_path: Path):
    beside_their_manifest(artifact, tmp_path, 350)


@full
def test_manifests_beside_their_file(artifact: Artifact, tmp_path: Path):
    manifests_beside_their_file(artifact, tmp_path, 350)


@full
@pytest.mark.parametrize("seed", [10, 11, 12])
def test_without_manifest(artifact: Artifact, tmp_path: Path, seed: int):
    without_manifest(artifact, tmp_path, 100, seed)
    still_works(artifact)
