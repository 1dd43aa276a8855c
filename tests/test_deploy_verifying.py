"""Files that are there already, against models."""

import shutil
from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, exported, images, loader, small
from torch import Tensor, nn
from torch.export import Dim
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import masks
from lightning_prune.deploy import XNNPACK, Artifact, export, verify
from lightning_prune.deploy.preprocessing import Normalize
from lightning_prune.deploy.quantization import Int8
from lightning_prune.errors import ExportError, VerificationError

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("verifying"))


def test_its_own_model(artifact: Artifact):
    accuracy = MulticlassAccuracy(3, average="micro")
    found = verify(artifact.path, small(), images(4), verify_on=loader(), metric=accuracy)
    assert found.max_abs_error <= 1e-5
    assert (found.samples, found.changed_predictions, found.executed) == (10, 0, "xnnpack")
    assert found.metrics == artifact.metrics
    assert list(found.methods["forward"]) == ["output"]


def test_the_model_stays_as_it_is(artifact: Artifact):
    model = small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    verify(artifact.path, model, images(4).to(memory_format=torch.channels_last))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_another_model(artifact: Artifact):
    with pytest.raises(
        VerificationError, match=r"small.pte: output 'output' on .*: largest absolute difference"
    ) as error:
        verify(artifact.path, small(seed=1), images(4))
    assert "no file was written" not in str(error.value)
    assert verify(artifact.path, small(seed=1), images(4), tolerance=100.0).max_abs_error > 1e-3


def test_a_masked_model_counts_as_what_it_computes(tmp_path: Path):
    model = small()
    masks.attach(model, ["conv.weight"])
    masks.write(model, [("conv.weight", torch.rand(8, 1, 3, 3) > 0.5)])
    path = export(model, tmp_path / "a.pte", example_inputs=EXAMPLE).path
    assert verify(path, model).max_abs_error <= 1e-5
    with pytest.raises(VerificationError):
        verify(path, small())


def test_other_inputs_than_the_file_takes(artifact: Artifact):
    with pytest.raises(ValueError, match=r"small.pte takes \(4, 1, 8, 8\) float32; got \(3, 1, 8, 8\) float32"):
        verify(artifact.path, small(), images(3))


def test_without_a_manifest_and_example(artifact: Artifact, tmp_path: Path):
    path = shutil.copy(artifact.path, tmp_path / "a.pte")
    found = verify(path, small())
    assert found.max_abs_error <= 1e-5
    assert found.executed == "unknown"


def test_a_manifest_of_another_file_comes_first(artifact: Artifact, tmp_path: Path):
    (tmp_path / "a.pte").write_bytes(artifact.path.read_bytes()[:-1])
    shutil.copy(artifact.manifest_path, tmp_path / "a.json")
    with pytest.raises(ExportError, match=r"a.pte is not the file that a.json describes"):
        verify(tmp_path / "a.pte", nn.Identity(), images(4))


class TestKinds:
    def test_sizes_that_vary(self, tmp_path: Path):
        shapes = {"image": {0: Dim("batch", min=1, max=6)}}
        path = export(small(), tmp_path / "a.pte", example_inputs=EXAMPLE, dynamic_shapes=shapes).path
        for count in (1, 5, 6):
            assert verify(path, small(), images(count)).max_abs_error <= 1e-5
        with pytest.raises(ValueError, match=r"a.pte takes"):
            verify(path, small(), images(7))
        assert verify(path, small(), images(2), verify_on=loader()).samples == 10

    def test_weights_in_a_file_of_their_own(self, tmp_path: Path):
        path = export(small(), tmp_path / "a.pte", example_inputs=EXAMPLE, external_weights=True).path
        assert verify(path, small(), images(4)).max_abs_error <= 1e-5
        (tmp_path / "a.ptd").write_bytes(b"x")
        with pytest.raises(ExportError, match=r"a.ptd is not the file that a.json describes"):
            verify(path, small(), images(4))

    def test_normalisation_inside(self, tmp_path: Path):
        path = export(small(), tmp_path / "a.pte", example_inputs=EXAMPLE, preprocess=Normalize([0.5], [0.25])).path
        assert verify(path, small(), EXAMPLE).max_abs_error <= 1e-4
        pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
        assert verify(path, small(), pixels).max_abs_error <= 1e-4

    @pytest.mark.slow
    def test_integers_are_judged_as_at_the_export(self, tmp_path: Path):
        backend = XNNPACK(quantization=Int8(calibration=loader()))
        path = export(small(), tmp_path / "a.pte", example_inputs=EXAMPLE, backend=backend).path
        found = verify(path, small(), images(4), verify_on=loader())
        assert found.bounds.tolerance is None
        assert found.methods["forward"]["output"].sqnr_db >= (found.bounds.min_sqnr or 0)
        with pytest.raises(VerificationError):
            verify(path, small(), images(4), tolerance=1e-7)


def test_several_inputs_and_outputs(tmp_path: Path):
    class Both(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"sum": left + right, "largest": (left * right).argmax(1)}

    inputs = (torch.randn(3, 4), torch.randn(3, 4))
    path = export(Both(), tmp_path / "a.pte", example_inputs=inputs).path
    assert set(verify(path, Both(), inputs).methods["forward"]) == {"sum", "largest"}
