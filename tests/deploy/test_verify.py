"""Files that are there already, against models."""

import shutil
from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, exported, images, loader, small
from torch import Tensor, nn
from torch.export import Dim
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune.deploy import XNNPACK, Artifact, Method, export, verify
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.quantization import Int8
from lightning_prune.errors import ExportError, VerificationError
from lightning_prune.model import masks
from lightning_prune.model.example import Example, learnt, remember
from lightning_prune.model.summary import summarize

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
    assert "written" not in str(error.value)
    assert str(error.value).endswith("is it the file of this model with these weights?")  # nothing of quantized files
    larger = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    counts = f"of {artifact.parameters} parameters, and this one has 195: load .* --checkpoint"
    with pytest.raises(VerificationError, match=counts):
        verify(artifact.path, larger, images(4))
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


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_learnt_example_has_as_many_samples_as_the_file_takes(count: int, tmp_path: Path):
    model = small()
    remember(model, learnt(Example((images(8),))))
    inputs = None if count == 1 else images(count)
    artifact = export(model, tmp_path / "a.pte", example_inputs=inputs)
    assert artifact.methods["forward"].inputs[0].shape[0] == count
    assert artifact.macs == count * (summarize(model).macs or 0)
    assert verify(artifact.path, model).max_abs_error <= 1e-5


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


class Tagger(nn.Module):
    """Tokens of any length; the body is a method of its own, the head a module of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.body(tokens).tanh()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


class LongOnesOff(Tagger):
    """Another one at the largest length alone."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + (tokens.shape[1] == 9)


class ShortOnesOff(Tagger):
    """Another one at the smallest length alone."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + (tokens.shape[1] == 2)


def tagger(kind: type[Tagger] = Tagger) -> Tagger:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    model, x = tagger(), torch.randn(2, 5, 4)
    sizes = {"tokens": {0: Dim("batch", min=1, max=4), 1: Dim("length", min=2, max=9)}}
    methods = {
        "embed": Method(model.embed, x, dynamic_shapes=sizes),
        "classify": Method(model.head, torch.randn(1, 8)),
    }
    path = tmp_path_factory.mktemp("tagged") / "t.pte"
    return export(model, path, example_inputs=x, dynamic_shapes=sizes, methods=methods)


class TestSeveralMethods:
    def test_all_are_compared(self, tagged: Artifact):
        found = verify(tagged.path, tagger(), torch.randn(1, 3, 4))
        assert list(found.methods) == ["forward", "embed", "classify"]
        assert 0 <= found.max_abs_error <= 1e-5

    def test_a_difference_in_one_of_them_alone(self, tagged: Artifact):
        model = tagger()
        model.embed = lambda tokens: model.body(tokens)  # type: ignore[method-assign]
        model.forward = lambda tokens: model.head(model.body(tokens).tanh())  # type: ignore[method-assign]
        with pytest.raises(VerificationError, match=r"t.pte: method 'embed': output 'output' on "):
            verify(tagged.path, model, torch.randn(1, 3, 4))

    def test_with_inputs_of_the_caller(self, tagged: Artifact, monkeypatch: pytest.MonkeyPatch):
        model, seen = tagger(), []
        embed = model.embed
        monkeypatch.setattr(Tagger, "embed", lambda self, x: (seen.append(tuple(x.shape)), embed(x))[1])
        verify(tagged.path, model, torch.randn(1, 3, 4), methods={"embed": Method("embed", torch.randn(3, 7, 4))})
        assert (3, 7, 4) in seen

    def test_a_method_that_the_model_has_not(self, tagged: Artifact):
        class Bare(Tagger):
            embed = None  # type: ignore[assignment]

            def forward(self, tokens: Tensor) -> Tensor:
                return self.head(self.body(tokens).tanh())

        with pytest.raises(ValueError, match=r"t.pte has a method 'embed', and Bare has no 'embed'.*methods=\{'embed'"):
            verify(tagged.path, tagger(Bare), torch.randn(1, 3, 4))

    def test_without_a_manifest_names_are_those_of_the_model(self, tagged: Artifact, tmp_path: Path):
        path = Path(shutil.copy(tagged.path, tmp_path / "t.pte"))
        model, x = tagger(), torch.randn(1, 3, 4)
        with pytest.raises(ValueError, match=r"has a method 'classify', and Tagger has no 'classify'"):
            verify(path, model, x)
        found = verify(path, model, x, methods={"classify": Method(model.head)})
        assert set(found.methods) == {"forward", "embed", "classify"}

    def test_methods_that_the_file_has_not(self, tagged: Artifact):
        with pytest.raises(ValueError, match=r"has no method 'other'; its methods are forward, embed, classify"):
            verify(tagged.path, tagger(), methods={"other": Method("embed")})
        with pytest.raises(TypeError, match="forward is the model's own"):
            verify(tagged.path, tagger(), methods={"forward": Method("forward")})
        with pytest.raises(TypeError, match=r"methods\['embed'\] is a method, must be a Method"):
            verify(tagged.path, tagger(), methods={"embed": tagger().embed})  # pyright: ignore[reportArgumentType]

    def test_preprocessing_of_one_of_them(self, tmp_path: Path):
        model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval(), torch.rand(1, 1, 8, 8)
        methods = {"pixels": Method("0", x, preprocess=Normalize([0.5], [0.25]))}
        path = export(model, tmp_path / "a.pte", example_inputs=x, methods=methods).path
        assert list(verify(path, model, x).methods) == ["forward", "pixels"]


class TestSizes:
    def test_any_in_the_range(self, tagged: Artifact):
        batches = [torch.randn(count, length, 4) for count, length in ((4, 9), (1, 2), (7, 3), (2, 5))]
        found = verify(tagged.path, tagger(), torch.randn(4, 2, 4), verify_on=batches)
        assert (found.samples, found.max_abs_error <= 1e-5) == (14, True)

    @pytest.mark.parametrize("shape", [(1, 1, 4), (1, 10, 4), (5, 3, 4), (1, 3, 5)])
    def test_none_outside_of_it(self, tagged: Artifact, shape: tuple[int, ...]):
        with pytest.raises((ValueError, ExportError), match=r"1…4, 2…9, 4|rejects"):
            verify(tagged.path, tagger(), torch.randn(shape))

    def test_a_batch_outside_of_it(self, tagged: Artifact):
        with pytest.raises(ValueError, match=r"a batch holds the inputs \(2, 10, 4\) float32.*\(N, 2…9, 4\)"):
            verify(tagged.path, tagger(), verify_on=[torch.randn(2, 10, 4)])

    @pytest.mark.parametrize(("kind", "where"), [(LongOnesOff, "largest"), (ShortOnesOff, "smallest")])
    def test_both_ends_are_compared(self, tagged: Artifact, kind: type[Tagger], where: str):
        with pytest.raises(VerificationError, match=f"output 'output' on the {where} sizes"):
            verify(tagged.path, tagger(kind), torch.randn(1, 3, 4))


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

    def test_integers_are_judged_on_the_data_where_no_example_tells(self, tmp_path: Path):
        """Random inputs are no more like the samples of the calibration than zeros are."""
        model, data = nn.Sequential(nn.Linear(8, 4)).eval(), 1e4 * torch.rand(6, 8)
        backend = XNNPACK(quantization=Int8(calibration=[data]))
        path = export(model, tmp_path / "a.pte", example_inputs=torch.zeros(4, 8), backend=backend).path
        for examples in (None, torch.zeros(4, 8)):
            assert verify(path, model, examples, verify_on=[data]).sqnr_db > 20
        with pytest.raises(VerificationError, match="are these inputs like those that it was calibrated on"):
            verify(path, model)
        with pytest.raises(ValueError, match="is quantized, and the example inputs hold a single value"):
            verify(path, model, torch.zeros(4, 8))


def test_several_inputs_and_outputs(tmp_path: Path):
    class Both(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"sum": left + right, "largest": (left * right).argmax(1)}

    inputs = (torch.randn(3, 4), torch.randn(3, 4))
    path = export(Both(), tmp_path / "a.pte", example_inputs=inputs).path
    assert set(verify(path, Both(), inputs).methods["forward"]) == {"sum", "largest"}
