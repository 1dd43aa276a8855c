from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, exported, images

from lightning_prune.deploy import Artifact, RuntimeModel, thread_count
from lightning_prune.errors import ExportError

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("runtime"))


class TestRuntimeModel:
    def test_signature(self, artifact: Artifact):
        model = RuntimeModel(artifact.path)
        assert [str(s) for s in (*model.inputs, *model.outputs)] == [
            "image (4, 1, 8, 8) float32",
            "output (4, 3) float32",
        ]

    def test_any_memory_layout_gives_the_same(self, artifact: Artifact):
        model, batch = RuntimeModel(artifact.path), images(4)
        expected = model(batch)[0]
        strided = torch.stack([batch, batch], dim=-1)[..., 0]
        assert torch.equal(model(batch.to(memory_format=torch.channels_last))[0], expected)
        assert torch.equal(model(strided)[0], expected)

    def test_outputs_are_the_callers(self, artifact: Artifact):
        model = RuntimeModel(artifact.path)
        first = model(images(4, seed=1))[0]
        kept = first.clone()
        model(images(4, seed=2))
        assert torch.equal(first, kept)

    @pytest.mark.parametrize(
        "inputs",
        [(), (EXAMPLE, EXAMPLE), (EXAMPLE[:1],), (EXAMPLE.double(),), (EXAMPLE.tolist(),)],
        ids=["none", "two", "shape", "dtype", "list"],
    )
    def test_inputs_that_do_not_fit(self, artifact: Artifact, inputs: tuple):
        with pytest.raises(ValueError, match=r"small.pte takes \(4, 1, 8, 8\) float32; got "):
            RuntimeModel(artifact.path)(*inputs)

    def test_files_that_are_no_program(self, artifact: Artifact, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match=r"no .pte file at .*m.pte"):
            RuntimeModel(tmp_path / "m.pte")
        for data, text in (
            (artifact.path.read_bytes()[:2000], r"it is cut off .*: copy it again"),
            (b"", "it does not begin like a .pte"),
            (b"text, and more of it", "it does not begin like a .pte"),
        ):
            (tmp_path / "m.pte").write_bytes(data)
            with pytest.raises(ExportError, match=rf"m.pte cannot be used: {text}"):
                RuntimeModel(tmp_path / "m.pte")

    def test_method_that_is_not_there(self, artifact: Artifact):
        with pytest.raises(ExportError, match=r"small.pte has no method 'embed'"):
            RuntimeModel(artifact.path, method="embed")


class TestThreadCount:
    def test_it_is_set_and_put_back_and_loaded_models_go_on(self, artifact: Artifact):
        from executorch.extension.pybindings import portable_lib  # pyright: ignore[reportMissingImports]

        model, batch = RuntimeModel(artifact.path), images(4)
        before, expected = portable_lib._threadpool_get_thread_count(), model(batch)[0]
        for threads in (1, 3, 2):
            with thread_count(threads):
                assert portable_lib._threadpool_get_thread_count() == threads
                torch.testing.assert_close(model(batch)[0], expected)
        assert portable_lib._threadpool_get_thread_count() == before
        torch.testing.assert_close(model(batch)[0], expected)

    def test_no_thread(self):
        with pytest.raises(ValueError, match="threads must be at least 1, got 0"), thread_count(0):
            pass
