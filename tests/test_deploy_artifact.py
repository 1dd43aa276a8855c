import hashlib
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deploy_models import LABELS, exported

from lightning_prune.deploy import Artifact, load_manifest
from lightning_prune.errors import ExportError

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
    assert artifact.zipped_bytes == manifest["zipped_bytes"] == len(zlib.compress(data, 9))
    assert artifact.sha256 == manifest["sha256"] == hashlib.sha256(data).hexdigest()


def test_manifest(artifact: Artifact, manifest: dict[str, Any]):
    assert artifact.manifest_path.name == "small.json"
    assert list(manifest)[:6] == ["format", "program", "sha256", "size_bytes", "zipped_bytes", "inputs"]
    assert manifest["program"] == "small.pte"
    assert manifest["inputs"] == [{"name": "image", "shape": [4, 1, 8, 8], "dtype": "float32"}]
    assert manifest["outputs"][0]["max_abs_error"] == artifact.max_abs_error
    assert manifest["labels"] == list(LABELS)
    assert manifest["backend"] == {"name": "xnnpack", "options": {}}
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
    for line in ("image (4, 1, 8, 8) float32", "10 samples, 0 changed predictions", artifact.sha256):
        assert line in text


class TestLoadManifest:
    def test_of_a_changed_file(self, artifact: Artifact, tmp_path: Path):
        data = bytearray(artifact.path.read_bytes())
        data[-1] ^= 1
        (tmp_path / "small.pte").write_bytes(data)
        (tmp_path / "small.json").write_bytes(artifact.manifest_path.read_bytes())
        with pytest.raises(ExportError, match=r"small.pte is not the file that small.json describes"):
            load_manifest(tmp_path / "small.pte")

    def test_alone(self, artifact: Artifact, manifest: dict[str, Any], tmp_path: Path):
        (tmp_path / "small.json").write_bytes(artifact.manifest_path.read_bytes())
        assert load_manifest(tmp_path / "small.json") == manifest

    def test_of_nothing(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match=r"no manifest at .*small.json"):
            load_manifest(tmp_path / "small.pte")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "1"}', '{"format": 1}', '"format"', "\x00"])
    def test_of_something_else(self, tmp_path: Path, text: str):
        (tmp_path / "small.json").write_text(text)
        with pytest.raises(ExportError, match=r"small.json is not a( complete)? manifest of lightning_prune"):
            load_manifest(tmp_path / "small.json")

    def test_of_a_newer_format(self, manifest: dict[str, Any], tmp_path: Path):
        (tmp_path / "small.json").write_text(json.dumps(manifest | {"format": 2}))
        with pytest.raises(ExportError, match=r"is of manifest format 2, .*reads up to 1: pip install --upgrade"):
            load_manifest(tmp_path / "small.json")
