import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_models import LABELS, images
from torch import Tensor, nn

from lightning_prune.deploy import XNNPACK, Artifact, Int8, RuntimeModel, benchmark, export, load_manifest
from lightning_prune.deploy.backends import Portable, Vulkan
from lightning_prune.deploy.program.constants import checked_constants
from lightning_prune.deploy.program.methods import Method
from lightning_prune.deploy.quantization.noise import sqnr_db
from lightning_prune.errors import ExportError

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)"
)


class Network(nn.Module):
    """A body, with a method of its own, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        self.head = nn.Linear(64, 3)

    def embed(self, image: Tensor, scale: Tensor) -> Tensor:
        return self.body(image) * scale

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image))


def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().eval()


CONSTANTS = {"mean": [0.25, 0.5], "name": "größe", "size": 8, "flags": (True, False)}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    model, path = network(), tmp_path_factory.mktemp("methods") / "m.pte"
    methods = {
        "embed": Method(model.embed, example_inputs=(images(2), torch.tensor(3.0))),
        "classify": Method(model.head, example_inputs=torch.zeros(1, 64)),
    }
    return export(model, path, example_inputs=images(1), methods=methods, labels=LABELS, constants=CONSTANTS)


@needs_executorch
class TestSeveral:
    def test_each_computes_what_it_computes(self, artifact: Artifact):
        model, two, features = network(), images(2, seed=5), torch.randn(1, 64)
        with torch.no_grad():
            pairs = [
                (RuntimeModel(artifact.path)(two[:1]), model(two[:1])),
                (RuntimeModel(artifact.path, "embed")(two, torch.tensor(2.0)), model.embed(two, torch.tensor(2.0))),
                (RuntimeModel(artifact.path, "classify")(features), model.head(features)),
            ]
        for outputs, expected in pairs:
            torch.testing.assert_close(outputs[0], expected, rtol=0, atol=1e-5)

    def test_shared_weights_are_stored_once(self, artifact: Artifact):
        weights = 4 * sum(p.numel() for p in network().parameters())
        assert weights < artifact.size_bytes < 1.4 * weights

    def test_manifest_names_them(self, artifact: Artifact):
        methods = load_manifest(artifact.path)["methods"]
        assert list(methods) == ["forward", "embed", "classify"]
        assert [one["name"] for one in methods["embed"]["inputs"]] == ["image", "scale"]
        assert all(output["max_abs_error"] < 1e-5 for one in methods.values() for output in one["outputs"])

    def test_manifest_says_where_they_are_in_the_model(self, artifact: Artifact):
        methods = load_manifest(artifact.path)["methods"]
        assert "function" not in methods["forward"]
        assert [methods[name]["function"] for name in ("embed", "classify")] == ["embed", "head.forward"]

    def test_constants_are_in_the_program(self, artifact: Artifact):
        assert RuntimeModel(artifact.path).constants == {
            "labels": LABELS, "mean": (0.25, 0.5), "name": ("größe",), "size": (8,), "flags": (True, False)
        }  # fmt: skip

    def test_method_that_is_not_there(self, artifact: Artifact):
        with pytest.raises(ExportError, match=r"has no method 'labels': its methods are forward, embed, classify"):
            RuntimeModel(artifact.path, "labels")


@needs_executorch
class TestExternalWeights:
    @pytest.mark.parametrize("backend", [XNNPACK(), Portable()], ids=str)
    def test_they_stand_beside(self, tmp_path: Path, backend: XNNPACK | Portable):
        model = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 8)
        ).eval()
        weights = 4 * sum(p.numel() for p in model.parameters())
        artifact = export(model, tmp_path / "m.pte", example_inputs=images(2), backend=backend, external_weights=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.ptd", "m.pte"]
        assert artifact.data[0].size_bytes == (tmp_path / "m.ptd").stat().st_size > 0.99 * weights
        assert artifact.size_bytes < 0.3 * weights
        with torch.no_grad():
            torch.testing.assert_close(RuntimeModel(artifact.path)(images(2))[0], model(images(2)), rtol=0, atol=1e-5)
        artifact.manifest_path.unlink()
        for use in (RuntimeModel, benchmark):
            with pytest.raises(
                ExportError, match=r"keeps its weights in a \.ptd .*m\.json, is missing: copy m\.json too"
            ):
                use(artifact.path)
        data = tmp_path / "m.ptd"
        assert RuntimeModel(artifact.path, data_path=data)(images(2))[0].shape == (2, 8)
        data.unlink()
        with pytest.raises(ExportError, match=r"m\.json, is missing: copy m\.json and m\.ptd too"):
            RuntimeModel(artifact.path)

    def test_without_them_the_runtime_never_sees_the_program(self, tmp_path: Path):
        artifact = export(network(), tmp_path / "m.pte", example_inputs=images(1), external_weights=True)
        for index, broken in enumerate((b"", artifact.data[0].path.read_bytes()[:-1], None)):
            folder = tmp_path / f"copy{index}"
            shutil.copytree(tmp_path, folder, ignore=shutil.ignore_patterns("copy*"))
            (folder / "m.ptd").unlink()
            if broken is not None:
                (folder / "m.ptd").write_bytes(broken)
            with pytest.raises(ExportError, match=r"m\.ptd is (missing|not the file)"):
                RuntimeModel(folder / "m.pte")


@needs_executorch
def test_backend_that_cannot_run_here(tmp_path: Path):
    model, path = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), tmp_path / "m.pte"
    artifact = export(model, path, example_inputs=images(1), backend=Vulkan())
    assert artifact.executed == load_manifest(path)["verification"]["executed"] == "portable"
    assert any("what vulkan makes of it was not executed." in note for note in artifact.notes)
    half = export(model, path, example_inputs=images(1), backend=Vulkan(half=True))
    assert any("was not executed; its rounding to float16 is not in the error either." in note for note in half.notes)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.pte"]
    with pytest.raises(ExportError, match="Backend VulkanBackend is not registered"):
        RuntimeModel(path)


@needs_executorch
@pytest.mark.parametrize(
    ("methods", "kind", "text"),
    [
        ({"embed": network().embed}, TypeError, r"methods\['embed'\] is a method, must be a Method"),
        ({"embed": Method("nothing", images(1))}, ValueError, "Network has no method 'nothing'"),
        ({"embed": Method("body.nothing", images(1))}, ValueError, "Network has no method 'body.nothing'"),
        ({"embed": Method(lambda x: x, images(1))}, TypeError, "is no method of the model or of a module in it"),
        ({"embed": Method(network().embed, images(1))}, TypeError, r"\['embed'\]: Network.embed is no method of"),
        ({"embed": Method(network(), images(1))}, TypeError, r"\['embed'\]: a Network is no method of the model"),
        ({"em bed": Method("body", images(1))}, ValueError, "got the name 'em bed', must be an identifier"),
        ({"forward": Method("body", images(1))}, TypeError, "methods: forward is the model's own and may not be among"),
        ({"embed": Method("body", torch.zeros(1, 3))}, ExportError, r"body.forward rejects .* \(1, 3\) float32"),
        ({"embed": Method("body", (3,))}, TypeError, r"example_inputs\[0\] is a int: .* argument of embed"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_methods_that_do_not_fit(tmp_path: Path, methods: Any, kind: type[Exception], text: str):
    with pytest.raises(kind, match=text):
        export(network(), tmp_path / "m.pte", example_inputs=images(1), methods=methods)
    assert list(tmp_path.iterdir()) == []


class TestConstants:
    def test_labels_are_one(self):
        assert checked_constants({"size": 3}, ["a", "b"], ["forward"]) == {"size": 3, "labels": ["a", "b"]}
        assert checked_constants(None, None, ["forward"]) == {}

    @pytest.mark.parametrize(
        ("constants", "kind", "text"),
        [
            ({"forward": 1}, ValueError, "'forward' is a method of the program already"),
            ({"labels": ["a"]}, ValueError, "'labels' is the constant method of labels="),
            ({"a b": 1}, ValueError, "must be an identifier such as 'mean'"),
            ({"a": []}, ValueError, r"constants\['a'\] is empty"),
            ({"a": 2**63}, ValueError, "an int of more than 64 bits"),
            ({"a": [1, "x"]}, TypeError, r"constants\['a'\] holds int, str"),
            ({"a": [1, True]}, TypeError, r"constants\['a'\] holds bool, int"),
            ({"a": None}, TypeError, r"constants\['a'\] holds NoneType"),
            ({"a": {"b": 1}}, TypeError, r"constants\['a'\] holds dict"),
            ({"a": torch.ones(2)}, TypeError, r"constants\['a'\] holds Tensor"),
            ([1], TypeError, "got a list, must be a dict"),
        ],
    )
    def test_values_that_are_refused(self, constants: Any, kind: type[Exception], text: str):
        with pytest.raises(kind, match=text):
            checked_constants(constants, ["x"], ["forward"])


class Parts(nn.Module):
    """A body that makes features of images, and a head for features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
        self.head = nn.Linear(64, 3)

    def embed(self, image: Tensor) -> Tensor:
        return self.body(image)

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features)

    def absolute(self, image: Tensor) -> Tensor:
        return image.abs()

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image))


IMAGES = [images(16, seed=3)]
FEATURES = [torch.randn(16, 64, generator=torch.Generator().manual_seed(4)) * 30]


def quantized(path: Path, methods: dict[str, Method], **options: Any) -> Artifact:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Parts().eval()
    backend = XNNPACK(quantization=Int8(IMAGES, **options))
    return export(model, path, example_inputs=images(1), methods=methods, backend=backend)


@needs_executorch
class TestQuantized:
    def test_a_pattern_may_match_in_one_method_alone(self, tmp_path: Path):
        methods = {"embed": Method("embed", images(1))}
        found = quantized(tmp_path / "m.pte", methods, skip=("head", "body.1")).manifest()["quantization"]["methods"]
        assert {name: one["kept_float"] for name, one in found.items()} == {
            "forward": ["body.1", "head"],
            "embed": ["body.1"],
        }

    def test_a_pattern_that_matches_nowhere_is_refused(self, tmp_path: Path):
        methods = {"embed": Method("embed", images(1))}
        with pytest.raises(ValueError, match=r"pattern 'tail' matches no layer; there are body\.1, body\.3, head"):
            quantized(tmp_path / "m.pte", methods, skip=("head", "tail"))

    def test_other_inputs_need_samples_of_their_own(self, tmp_path: Path):
        methods = {"classify": Method("classify", torch.zeros(1, 64))}
        told = r"methods\['classify'\] takes features.* give it samples of its own.*calibration=loader"
        with pytest.raises(ValueError, match=told):
            quantized(tmp_path / "m.pte", methods)

    def test_samples_of_its_own_are_those_that_it_is_calibrated_on(self, tmp_path: Path):
        methods = {"classify": Method("classify", torch.zeros(1, 64), calibration=FEATURES)}
        path = quantized(tmp_path / "m.pte", methods).path
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Parts().eval()
        x = FEATURES[0][:1]
        with torch.no_grad():
            assert sqnr_db(model.classify(x), RuntimeModel(path, "classify")(x)[0]) > 25

    def test_a_method_without_layers_stays_in_float(self, tmp_path: Path):
        methods = {"absolute": Method("absolute", images(1)), "embed": Method("embed", images(1))}
        artifact = quantized(tmp_path / "m.pte", methods, skip=("body",))
        assert list(artifact.manifest()["quantization"]["methods"]) == ["forward"]
        x = images(1, seed=9)
        assert torch.equal(RuntimeModel(artifact.path, "absolute")(x)[0], x.abs())

    def test_all_in_float_is_refused(self, tmp_path: Path):
        with pytest.raises(ExportError, match="leaves nothing to quantize"):
            quantized(tmp_path / "m.pte", {"embed": Method("embed", images(1))}, skip=("body", "head"))

    def test_errors_name_the_method(self, tmp_path: Path):
        methods = {"classify": Method("classify", torch.zeros(1, 64), calibration=IMAGES)}
        with pytest.raises(ValueError, match=r"methods\['classify'\]: calibration: a batch holds"):
            quantized(tmp_path / "m.pte", methods)

    def test_samples_without_a_quantization(self, tmp_path: Path):
        methods = {"embed": Method("embed", images(1), calibration=IMAGES)}
        with pytest.raises(ValueError, match=r"methods\['embed'\].calibration: the backend has no quantization"):
            export(Parts().eval(), tmp_path / "m.pte", example_inputs=images(1), methods=methods)

    def test_samples_that_can_be_read_once(self, tmp_path: Path):
        methods = {"embed": Method("embed", images(1), calibration=iter(IMAGES))}
        with pytest.raises(TypeError, match=r"methods\['embed'\].calibration: got a list_iterator, must be a DataLoa"):
            quantized(tmp_path / "m.pte", methods)
