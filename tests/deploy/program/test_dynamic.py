from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_models import Small, images, small
from torch import Tensor, nn
from torch.export import Dim

from lightning_prune.deploy import Artifact, RuntimeModel, export, load_manifest
from lightning_prune.deploy.program.dynamic import checked_shapes, ends, resized, traceable
from lightning_prune.deploy.program.signature import MethodSpec, TensorSpec
from lightning_prune.errors import ExportError

BATCH = Dim("batch", min=1, max=8)
IMAGE = torch.zeros(2, 3, 4)


class TestArgument:
    def test_by_name_by_position_and_by_size(self):
        by_name = {"image": {0: BATCH}}
        for given in (
            by_name,
            ({0: BATCH},),
            [{0: BATCH}],
            ((BATCH, None, None),),
            {"image": {0: BATCH, 1: 3, 2: None}},
        ):
            assert checked_shapes(given, ["image"], [IMAGE]) == ({0: BATCH},)

    def test_what_may_not_vary_is_left_out(self):
        for given in (None, {}, {"image": None}, ({},), {"image": {0: Dim.STATIC}}):
            assert checked_shapes(given, ["image"], [IMAGE]) is None

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"x": {0: BATCH}}, "there is no input 'x'; the inputs are 'image', as in dynamic_shapes={'image'"),
            ({0: BATCH}, "there is no input 0"),
            (({0: BATCH}, None), "got 2 entries for 1 inputs"),
            ({"image": {3: BATCH}}, r"'image' has no dimension 3; its shape is \(2, 3, 4\), the dimensions are 0 to 2"),
            ({"image": {-1: BATCH}}, "'image' has no dimension -1"),
            ({"image": {True: BATCH}}, "'image' has no dimension True"),
            ({"image": (BATCH,)}, "got 1 sizes for 'image' of 3 dimensions"),
            (
                {"image": {0: Dim("n", min=3, max=9)}},
                "dimension 0 of 'image' is 2 in the example, out of the range 3 to 9",
            ),
            ({"image": {2: Dim("n", max=3)}}, "dimension 2 of 'image' is 4 in the example, out of the range 0 to 3"),
            ({"image": {2: Dim.AUTO(max=3)}}, r"out of the range 0 to 3 that Dim\.AUTO or Dim\.DYNAMIC gives it"),
            ({"image": {0: 5}}, "dimension 0 of 'image' is 2 in the example, not 5"),
        ],
    )
    def test_values_that_do_not_fit(self, given: Any, text: str):
        with pytest.raises(ValueError, match=text):
            checked_shapes(given, ["image"], [IMAGE])

    @pytest.mark.parametrize("given", [BATCH, "image", 3, {"image": BATCH}, {"image": 3}, {"image": {0: "batch"}}])
    def test_other_types(self, given: Any):
        with pytest.raises(TypeError, match="dynamic_shapes: "):
            checked_shapes(given, ["image"], [IMAGE])


class TestSizes:
    def test_resized_repeats_in_order(self):
        x = torch.arange(6).reshape(2, 3)
        assert resized(x, (3, 2)).tolist() == [[0, 1], [3, 4], [0, 1]]
        assert resized(x, (2, 3)) is x

    def test_a_single_sample_grows_where_it_may(self):
        single, other = torch.zeros(1, 4), torch.zeros(2, 4)
        double = 2 * BATCH
        shapes = ({0: BATCH}, {0: double}, {0: Dim("one", max=1)}, {0: Dim.AUTO})
        grown = traceable([single, other, single, single], shapes)  # type: ignore[arg-type]
        assert [len(x) for x in grown] == [2, 4, 1, 2]
        assert traceable([single], None)[0] is single

    def test_first_sizes_grow(self):
        spec = TensorSpec("x", (4, 3), torch.float32, {0: (2, 8)})
        found = ends(MethodSpec((spec,), ()))
        assert list(found.values()) == [[[3, 3]], [[8, 3]], [[2, 3]]]
        assert ends(MethodSpec((TensorSpec("x", (4, 3), torch.float32),), ())) == {}


class Fixed(nn.Module):
    """Writes its batch size as a number."""

    def forward(self, image: Tensor) -> Tensor:
        return image.reshape(2, -1) * 2


class Pairs(nn.Module):
    """Takes even sizes."""

    def forward(self, image: Tensor) -> Tensor:
        return image.reshape(image.shape[0] // 2, 2, -1) * 2


class Few(nn.Module):
    """Goes another way from a size on."""

    def forward(self, image: Tensor) -> Tensor:
        return image * 2 if image.shape[0] < 5 else image * 3


def exported(folder: Path, model: nn.Module, example: Tensor, dims: Any, **options: Any) -> Artifact:
    return export(model, folder / "m.pte", example_inputs=example, dynamic_shapes={"image": dims}, **options)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    loader = [images(n, seed=n) for n in (3, 1, 11)]
    return exported(tmp_path_factory.mktemp("dynamic"), small(), images(1), {0: BATCH}, verify_on=loader)


class TestExport:
    def test_any_size_in_range_gives_what_the_model_gives(self, artifact: Artifact):
        program, model = RuntimeModel(artifact.path), small().eval()
        for size in (2, 8, 1, 5, 8):
            with torch.no_grad():
                torch.testing.assert_close(program(images(size))[0], model(images(size)), rtol=0, atol=1e-5)

    def test_a_loader_of_any_batch_size(self, artifact: Artifact):
        assert artifact.verified_samples == 15
        assert artifact.changed_predictions == 0

    @pytest.mark.parametrize("size", [0, 9])
    def test_a_size_outside_is_refused(self, artifact: Artifact, size: int):
        with pytest.raises(ValueError, match=rf"m.pte takes \(1…8, 1, 8, 8\) float32; got \({size}, 1, 8, 8\) float32"):
            RuntimeModel(artifact.path)(images(size))

    def test_manifest_and_artifact_say_so(self, artifact: Artifact):
        forward = load_manifest(artifact.path)["methods"]["forward"]
        assert forward["inputs"] == [
            {"name": "image", "shape": [1, 1, 8, 8], "dtype": "float32", "dynamic": {"0": [1, 8]}}
        ]
        assert forward["outputs"][0]["dynamic"] == {"0": [1, 8]}
        assert [str(s) for s in artifact.inputs] == ["image (1…8, 1, 8, 8) float32"]

    def test_a_batch_above_what_kernels_of_this_machine_are_chosen_by(self, tmp_path: Path):
        artifact = exported(tmp_path, small(), images(2), {0: Dim("batch", min=1, max=40)})
        assert RuntimeModel(artifact.path)(images(40))[0].shape == (40, 3)

    @pytest.mark.slow
    def test_height_and_width(self, tmp_path: Path):
        sides = {0: BATCH, 2: Dim("height", min=4, max=12), 3: Dim("width", min=6, max=10)}
        artifact = exported(tmp_path, small(), images(2), sides)
        assert artifact.inputs[0].dynamic == {0: (1, 8), 2: (4, 12), 3: (6, 10)}
        with torch.no_grad():
            batch, model = torch.randn(3, 1, 5, 9), small().eval()
            torch.testing.assert_close(RuntimeModel(artifact.path)(batch)[0], model(batch), rtol=0, atol=1e-5)


class TestRefused:
    @pytest.fixture(autouse=True)
    def _no_file(self, tmp_path: Path):
        pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
        yield
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("model", "dims", "text"),
        [
            (Fixed(), {0: BATCH}, r"Fixed: dynamic_shapes: dimension 0 of 'image' \(batch\) cannot vary.* constant 2"),
            (
                Fixed(),
                {0: Dim.DYNAMIC(max=8)},
                "dimension 0 of 'image' cannot vary, since forward makes it the constant 2",
            ),
            (Small(), {1: Dim("channels", max=3)}, r"Small takes \(1, 1, 8, 8\) float32 and rejects \(1, 2, 8, 8\)"),
            (Few(), {0: BATCH}, r"dimension 0 of 'image'.*What torch\.export suggests: batch = Dim\('batch', max=4\)"),
            (Small(), {0: Dim("batch")}, "dimension 0 of 'image' has no largest size, which a .pte needs"),
            (Pairs(), {0: 2 * Dim("half", min=1, max=4)}, r"dimension 0 of 'image' can only be 2\*s\d+"),
        ],
    )
    def test_by_name(self, tmp_path: Path, model: nn.Module, dims: Any, text: str):
        example = images({Small: 1, Pairs: 4}.get(type(model), 2))
        with pytest.raises(ExportError, match=text):
            exported(tmp_path, model, example, dims)
