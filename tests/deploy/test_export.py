import importlib.util
import random
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from deploy_models import EXAMPLE, LABELS, Small, TwoInputs, exported, images, loader, small
from torch import Tensor, nn
from torch.nn.utils import prune
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune.deploy import XNNPACK, Artifact, RuntimeModel, export, load_manifest
from lightning_prune.errors import ExportError, VerificationError
from lightning_prune.model import masks

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)"
)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("export"))


def folder_of(artifact: Artifact) -> list[str]:
    return sorted(p.name for p in artifact.path.parent.iterdir())


def agrees(artifact: Artifact, model: nn.Module, *inputs: Tensor) -> None:
    """The file gives what the model gives in eval mode, by names and values."""
    with torch.no_grad():
        expected = model.eval()(*inputs)
    torch.testing.assert_close(RuntimeModel(artifact.path)(*inputs)[0], expected, rtol=0, atol=TOLERANCE)


@needs_executorch
class TestFile:
    def test_it_computes_what_the_model_computes(self, artifact: Artifact):
        agrees(artifact, small(), images(4, seed=7))
        assert 0 <= artifact.max_abs_error < TOLERANCE

    def test_only_program_and_manifest_are_left(self, artifact: Artifact):
        assert folder_of(artifact) == ["small.json", "small.pte"]

    def test_it_was_run_on_the_loader(self, artifact: Artifact):
        model, batch = small().eval(), images(10)
        with torch.no_grad():
            right = (model(batch).argmax(1) == torch.arange(10) % 3).float().mean().item()
        assert artifact.verified_samples == 10
        assert artifact.changed_predictions == 0
        assert artifact.metrics == pytest.approx({"eager": right, "executorch": right})

    def test_it_knows_the_model(self, artifact: Artifact):
        assert artifact.parameters == sum(p.numel() for p in small().parameters())
        assert artifact.macs == 4 * (8 * 9 * 64 + 8 * 3)
        assert [str(s) for s in (*artifact.inputs, *artifact.outputs)] == [
            "image (4, 1, 8, 8) float32",
            "output (4, 3) float32",
        ]
        assert artifact.labels == LABELS

    def test_the_whole_network_runs_in_the_backend(self, artifact: Artifact):
        assert artifact.notes == ()


@needs_executorch
class TestModels:
    def test_masked_channels_are_told(self, tmp_path: Path):
        model = small()
        masks.attach(model, ["conv.weight"], is_structured=True)
        whole = export(model, tmp_path / "whole.pte", example_inputs=images(4))
        keep = torch.ones_like(masks.read(model)["conv.weight"])
        keep[0] = False
        masks.write(model, [("conv.weight", keep)])
        masked = export(model, tmp_path / "masked.pte", example_inputs=images(4))
        assert whole.notes == ()
        assert masked.notes[0].startswith("Whole channels of this model are masked")

    def test_sequential_root_in_training_mode_and_channels_last(self, tmp_path: Path):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        batch = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        agrees(export(model.train(), tmp_path / "m.pte", example_inputs=batch), model, batch)

    def test_masks_are_folded(self, tmp_path: Path):
        model = small()
        masks.attach(model, ["conv.weight"])
        masks.write(model, [("conv.weight", torch.arange(72).reshape(8, 1, 3, 3) % 4 == 0)])
        prune.l1_unstructured(model.head, "weight", amount=12)
        model(EXAMPLE)  # leaves weights with a history, which copy.deepcopy refuses
        before = {name: t.clone() for name, t in model.state_dict().items()}
        artifact = export(model, tmp_path / "m.pte", example_inputs=EXAMPLE)
        assert artifact.notes == XNNPACK().notes(artifact.sparsity)
        assert artifact.parameters - artifact.nonzero_parameters == 54 + 12 + 8
        assert before.keys() == model.state_dict().keys()
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        agrees(artifact, model, images(4))

    def test_several_inputs_and_nested_outputs(self, tmp_path: Path):
        inputs = torch.tensor([3, 1]), torch.randn(2, 4)
        batches = [((torch.arange(5), torch.randn(5, 4)), "targets"), (torch.tensor([1]), torch.randn(1, 4), "targets")]
        artifact = export(TwoInputs(), tmp_path / "m.pte", example_inputs=inputs, verify_on=batches)
        assert [str(s) for s in artifact.inputs] == ["tokens (2,) int64", "features_0 (2, 4) float32"]
        assert [s.name for s in artifact.outputs] == ["logits", "aux.0", "aux.1"]
        assert artifact.verified_samples == 6
        assert any("stay outside xnnpack" in note and "aten::embedding" in note for note in artifact.notes)

    def test_a_trained_lightning_module_is_left_alone(self, tmp_path: Path):
        class Module(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.example_input_array = EXAMPLE
                self.model = Small()
                self.val_acc = MulticlassAccuracy(3)

            def forward(self, image: Tensor) -> Tensor:
                return self.model(image)

            def training_step(self, batch: list[Tensor]) -> Tensor:
                return nn.functional.cross_entropy(self(batch[0]), batch[1])

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), 0.01)

        module = Module()
        trainer = L.Trainer(
            max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module, loader())
        module.model.norm.eval()
        modes = [m.training for m in module.modules()]
        state = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
        with torch.inference_mode():
            artifact = export(module, tmp_path / "m.pte", verify_on=loader(), metric=module.val_acc)
        assert torch.equal(state[0], torch.get_rng_state())
        assert state[1] == str(np.random.get_state())
        assert state[2] == random.getstate()
        assert [m.training for m in module.modules()] == modes
        assert module.trainer is trainer
        assert artifact.metrics["eager"] == artifact.metrics["executorch"]
        agrees(artifact, module, images(4))

    def test_inputs_outside_the_domain_are_not_held_against_the_file(self, tmp_path: Path):
        class Logarithm(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.log()

        artifact = export(Logarithm(), tmp_path / "m.pte", example_inputs=torch.ones(2, 2))
        assert any("on the example inputs alone" in note for note in artifact.notes)


@needs_executorch
class TestRefusedFile:
    def test_an_older_pair_stays(self, tmp_path: Path):
        old = export(nn.Linear(4, 3), tmp_path / "m.pte", example_inputs=torch.zeros(1, 4))
        manifest = load_manifest(old.path)
        with pytest.raises(
            VerificationError,
            match=r"^m.pte was not written: output 'output' on .* the tolerance is 1e-12\. C",
        ):
            export(small(), old.path, example_inputs=images(4), tolerance=1e-12)
        assert load_manifest(old.path) == manifest
        assert folder_of(old) == ["m.json", "m.pte"]

    def test_nan_is_never_within_tolerance(self, tmp_path: Path):
        model = nn.Linear(4, 3)
        nn.init.constant_(model.bias, torch.nan)
        with pytest.raises(VerificationError, match="output 'output' on the example inputs holds NaN"):
            export(model, tmp_path / "m.pte", example_inputs=torch.zeros(1, 4))
        assert list(tmp_path.iterdir()) == []

    def test_a_model_that_changes_its_input(self, tmp_path: Path):
        class InPlace(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.mul_(2) + 1

        with pytest.raises(ExportError, match=r"InPlace changes its input in place.*clone"):
            export(InPlace(), tmp_path / "m.pte", example_inputs=torch.ones(2))


@needs_executorch
class TestBadInput:
    """All of these are refused before torch.export is called."""

    @pytest.fixture(autouse=True)
    def _nothing_heavy(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setattr(torch.export, "export", None)
        yield
        assert list(tmp_path.iterdir()) == []

    def test_suffix(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"got '.*m.onnx', must end in .pte, as in '.*m.pte'"):
            export(small(), tmp_path / "m.onnx", example_inputs=EXAMPLE)

    def test_folder_that_does_not_exist(self, tmp_path: Path):
        with pytest.raises(ExportError, match=r"the folder .*missing does not exist: create it"):
            export(small(), tmp_path / "missing" / "m.pte", example_inputs=EXAMPLE)

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that not even root can write")
    def test_folder_that_cannot_be_written(self):
        with pytest.raises(ExportError, match="the folder /proc cannot be written"):
            export(small(), "/proc/m.pte", example_inputs=EXAMPLE)

    def test_no_example_inputs(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"Small has no example_input_array.*example_inputs=torch.zeros\("):
            export(small(), tmp_path / "m.pte")

    def test_example_input_that_is_no_tensor(self, tmp_path: Path):
        with pytest.raises(TypeError, match=r"example_inputs\[1\] is a int"):
            export(small(), tmp_path / "m.pte", example_inputs=(EXAMPLE, 3))  # pyright: ignore[reportArgumentType]

    def test_example_input_that_the_model_rejects(self, tmp_path: Path):
        with pytest.raises(ExportError, match=r"Small rejects the example inputs \(1, 3, 8, 8\) float32: .*channels"):
            export(small(), tmp_path / "m.pte", example_inputs=torch.zeros(1, 3, 8, 8))

    def test_output_that_is_no_tensor(self, tmp_path: Path):
        class WithLoss(nn.Module):
            def forward(self, image: Tensor):
                return {"logits": image, "loss": None}

        with pytest.raises(ExportError, match="output 'loss' is a NoneType"):
            export(WithLoss(), tmp_path / "m.pte", example_inputs=EXAMPLE)

    def test_labels(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"labels: got 2 for output 'output' of shape \(4, 3\).*3 in all"):
            export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, labels=["a", "b"])

    @pytest.mark.parametrize("labels", [[], [1, 2, 3]])
    def test_labels_of_other_kinds(self, tmp_path: Path, labels: list):
        with pytest.raises((ValueError, TypeError), match="labels: got "):
            export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, labels=labels)

    def test_preprocessing_of_another_kind(self, tmp_path: Path):
        with pytest.raises(TypeError, match=r"preprocess: got a ReLU, must be Normalize\("):
            export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, preprocess=nn.ReLU())  # pyright: ignore[reportArgumentType]

    def test_labels_in_one_string(self, tmp_path: Path):
        with pytest.raises(TypeError, match="labels: got the string 'abc'"):
            export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, labels="abc")

    @pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
    def test_tolerance(self, tmp_path: Path, tolerance: float):
        with pytest.raises(ValueError, match=r"tolerance must be a number above 0, got "):
            export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, tolerance=tolerance)

    def test_backend_class_in_place_of_a_value(self, tmp_path: Path):
        with pytest.raises(TypeError, match=r"must be a value such as XNNPACK\(\)"):
            export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, backend=XNNPACK)  # pyright: ignore[reportArgumentType]

    def test_metric_without_a_loader(self, tmp_path: Path):
        with pytest.raises(ValueError, match="pass a loader as verify_on="):
            export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, metric=MulticlassAccuracy(3))

    def test_metric_of_another_kind(self, tmp_path: Path):
        with pytest.raises(TypeError, match=r"must be a torchmetrics\.Metric"):
            export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, verify_on=[], metric=max)  # pyright: ignore[reportArgumentType]

    def test_loader_without_a_batch(self, tmp_path: Path):
        with pytest.raises(ValueError, match="verify_on: the loader gives no batch"):
            export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, verify_on=[])

    def test_loader_of_another_shape(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"\(2, 1, 9, 9\) float32, the example inputs are \(N, 1, 8, 8\) float32"):
            export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, verify_on=[torch.zeros(2, 1, 9, 9)])

    def test_lazy_parameter(self, tmp_path: Path):
        model = nn.Sequential(nn.LazyLinear(3))
        with pytest.raises(ExportError, match=r"0\.weight has no values yet"):
            export(model, tmp_path / "m.pte", example_inputs=torch.zeros(1, 4))


def test_executorch_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-prune\[mobile\]'"):
        export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE)
    assert list(tmp_path.iterdir()) == []
