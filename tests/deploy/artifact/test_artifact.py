import hashlib
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_models import LABELS, exported

from lightning_prune.deploy import Artifact, load_manifest
from lightning_prune.deploy.artifact.artifact import zipped_size

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("artifact"))


@pytest.fixture
def manifest(artifact: Artifact) -> dict[str, Any]:
    return load_manifest(artifact.path)


def test_numbers_are_those_of_the_file(artifact: Artifact, manifest: dict[str, Any]):
    data = artifact.path.read_bytes()
    assert artifact.size_bytes == manifest["size_bytes"] == len(data)
    assert artifact.zipped_bytes == manifest["zipped_bytes"] == zipped_size(artifact.path)
    assert artifact.sha256 == manifest["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75, 0.95])
def test_zipped_size_is_close_to_that_of_zip(tmp_path: Path, sparsity: float):
    weights = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    removed = torch.rand(100_000, generator=torch.Generator().manual_seed(1)) < sparsity
    data = weights.masked_fill(removed, 0.0).numpy().tobytes()
    (tmp_path / "weights").write_bytes(data)
    assert zipped_size(tmp_path / "weights") <= 1.02 * len(zlib.compress(data, 9))


def test_zipped_size_of_several_files_and_pieces(tmp_path: Path):
    """Each piece is deflated by itself, whatever the thread; the sum is close to that of one stream."""
    data = bytes(torch.arange(9 * 2**20, dtype=torch.int64).remainder(251).to(torch.uint8).numpy())
    (tmp_path / "large").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    stream = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    whole = len(stream.compress(data)) + len(stream.flush())
    assert zipped_size(tmp_path / "empty") <= 8
    assert zipped_size(tmp_path / "large", tmp_path / "empty") == pytest.approx(whole, rel=1e-3)
    assert zipped_size(tmp_path / "large", tmp_path / "large") == 2 * zipped_size(tmp_path / "large")


def test_manifest(artifact: Artifact, manifest: dict[str, Any]):
    assert artifact.manifest_path.name == "small.json"
    assert list(manifest) == [
        *("format", "digest", "program", "sha256", "size_bytes", "zipped_bytes", "data", "methods", "labels"),
        *("backend", "quantization", "model", "verification", "notes", "versions"),
    ]
    assert manifest["program"] == "small.pte"
    forward = manifest["methods"]["forward"]
    assert forward["inputs"] == [{"name": "image", "shape": [4, 1, 8, 8], "dtype": "float32"}]
    assert forward["outputs"][0]["max_abs_error"] == artifact.max_abs_error
    assert forward["outputs"][0]["sqnr_db"] == pytest.approx(artifact.sqnr_db)
    assert manifest["labels"] == list(LABELS)
    assert manifest["backend"]["name"] == manifest["verification"]["executed"] == artifact.executed == "xnnpack"
    assert manifest["quantization"] is None
    assert manifest["model"]["class"] == "Small"
    assert manifest["verification"]["samples"] == 10
    assert set(manifest["versions"]) == {"lightning_prune", "torch", "executorch", "python"}


def test_manifest_without_labels_has_no_such_key(artifact: Artifact):
    assert "labels" not in replace(artifact, labels=None).manifest()


def test_metric_that_is_not_finite_stands_as_null(artifact: Artifact):
    verification = replace(artifact.verification, metrics={"eager": float("nan"), "executorch": 0.5})
    manifest = replace(artifact, verification=verification).manifest()
    assert manifest["verification"]["metrics"] == {"eager": None, "executorch": 0.5}


def test_it_reads_well(artifact: Artifact):
    text = str(artifact)
    assert text.startswith(str(artifact.path))
    for line in ("image (4, 1, 8, 8) float32", "10 samples, 0 changed predictions", artifact.sha256, "run on xnnpack"):
        assert line in text
