import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_models import EXAMPLE, exported, images, small

from lightning_prune.deploy import (
    Artifact,
    RuntimeModel,
    benchmark,
    export,
    inspect,
    load_manifest,
    thread_count,
    verify,
)
from lightning_prune.deploy.artifact.manifest import to_text
from lightning_prune.deploy.executorch.quiet import imported
from lightning_prune.deploy.program.signature import MethodSpec, TensorSpec
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.deploy.runtime.model import read_contents
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
        assert torch.equal(model(strided.to(memory_format=torch.channels_last))[0], expected)

    def test_it_gives_what_the_runtime_gives_here(self, artifact: Artifact):
        program = imported("executorch.runtime").Runtime.get().load_program(artifact.path)
        here = program.load_method("forward").execute([images(4)])
        assert torch.equal(RuntimeModel(artifact.path)(images(4))[0], here[0])

    def test_inputs_may_ask_for_a_gradient(self, artifact: Artifact):
        model = RuntimeModel(artifact.path)
        assert not model(images(4).requires_grad_())[0].requires_grad

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

    def test_no_such_thread_or_suffix(self, artifact: Artifact):
        with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
            RuntimeModel(artifact.path, threads=0)
        with pytest.raises(ValueError, match=r"must end in .pte"):
            RuntimeModel(artifact.manifest_path)

    def test_a_signature_that_the_file_has_not(self, artifact: Artifact):
        spec = RuntimeModel(artifact.path)
        narrow = TensorSpec("image", (4, 1, 8, 9), torch.float32)
        for inputs, outputs in (((narrow,), spec.outputs), (spec.inputs, (*spec.outputs, narrow))):
            with pytest.raises(
                ExportError, match=r"takes \(4, 1, 8, 8\) float32 and gives \(4, 3\) float32, which is not what"
            ):
                RuntimeModel(artifact.path, signature=MethodSpec(inputs, outputs))
        known = RuntimeModel(artifact.path, signature=MethodSpec(spec.inputs, spec.outputs))
        assert (known.manifest, known.inputs) == (None, spec.inputs)

    def test_a_relative_path_is_of_the_callers_folder(self, artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
        RuntimeModel(artifact.path)(images(4))  # the other process runs, in the folder in which it was started
        monkeypatch.chdir(artifact.path.parent)
        program = RuntimeModel(artifact.path.name)
        assert torch.equal(program(images(4))[0], RuntimeModel(artifact.path)(images(4))[0])
        assert read_contents(program.path)["methods"]

    def test_a_file_that_changes_is_read_again(self, tmp_path: Path):
        path = tmp_path / "a.pte"
        outputs = []
        for seed in (0, 3):
            export(small(seed), path, example_inputs=EXAMPLE)
            outputs.append(RuntimeModel(path)(images(4))[0])
        assert not torch.equal(*outputs)


def described(artifact: Artifact, folder: Path, **changes: Any) -> Path:
    """Return a copy of a program, of whose method its manifest says something else, with a right digest."""
    manifest = load_manifest(artifact.path)
    (folder / "small.pte").write_bytes(artifact.path.read_bytes())
    forward = manifest["methods"]["forward"]
    for key, value in changes.items():
        side, _, what = key.partition("_")
        if what:
            forward[side][0][what] = value
        elif side == "method":
            manifest["methods"] = {value: forward}
        else:
            forward[side] = value
    (folder / "small.json").write_text(to_text(manifest), encoding="utf-8")
    return folder / "small.pte"


TOLD = [
    {"inputs_shape": [2**33, 1, 8, 8]},
    {"inputs_shape": [2**33, 1, 8, 8], "inputs_dynamic": {"0": [1, 4]}},
    {"inputs_shape": [4, 1, 64]},
    {"inputs_dtype": "float64"},
    {"inputs": []},
    {"outputs_shape": [4, 30]},
    {"outputs_shape": [4]},
    {"outputs_dtype": "int64"},
    {"outputs": []},
    {"method": "embed"},
]


@pytest.mark.parametrize("changes", TOLD, ids=lambda changes: " ".join(f"{k} {v}" for k, v in changes.items()))
@pytest.mark.parametrize(
    "read",
    [RuntimeModel, inspect, benchmark, lambda path: verify(path, small(), EXAMPLE)],
    ids=["RuntimeModel", "inspect", "benchmark", "verify"],
)
def test_a_manifest_that_says_something_else_of_a_method(
    artifact: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path], object],
    changes: dict[str, Any],
):
    path = described(artifact, tmp_path, **changes)
    drawn = torch.randn
    # to fail, and not to take 34 GB
    monkeypatch.setattr(torch, "randn", lambda shape, **more: drawn([min(n, 9) for n in shape], **more))
    with pytest.raises(ExportError, match=r"small\.(pte|json)"):
        read(path)


def test_large_inputs_are_not_made_unasked(artifact: Artifact):
    program = RuntimeModel(artifact.path)
    program.inputs = (TensorSpec("image", (2**20, 1, 8, 8), torch.float32),)
    with pytest.raises(ExportError, match=r"small.pte takes 268,435,456 bytes of inputs, .* pass inputs of your own"):
        program.random_inputs()


class Counting(torch.nn.Module):
    """Gives how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.calls


class TestLoaded:
    @pytest.mark.filterwarnings("ignore:Mutation on a buffer:UserWarning")  # it starts with zeros, as it would here
    def test_each_has_its_own_buffers_until_it_is_loaded_anew(self, tmp_path: Path):
        path, zero = tmp_path / "a.pte", torch.zeros(1)
        exir = imported("executorch.exir")
        traced = torch.export.export(Counting(), (zero,))
        path.write_bytes(exir.to_edge_transform_and_lower(traced).to_executorch().buffer)
        one, other = RuntimeModel(path), RuntimeModel(path)
        assert [float(one(zero)[0]) for _ in range(3)] == [1, 2, 3]
        assert float(other(zero)[0]) == 1
        export(small(), tmp_path / "b.pte", example_inputs=EXAMPLE)
        assert float(one(zero)[0]) == 4, "what others do leaves it loaded"
        one.unload()
        assert float(one(zero)[0]) == 1
        assert float(other(zero)[0]) == 2

    def test_what_nobody_refers_to_is_released(self, artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
        model = RuntimeModel(artifact.path)
        number, released = model._number, []
        exchange = CHILD._exchange
        monkeypatch.setattr(CHILD, "_exchange", lambda *a: (released.extend(a[0]["released"]), exchange(*a))[1])
        model(images(4))
        assert number not in released
        del model
        gc.collect()
        RuntimeModel(artifact.path)
        assert number in released


class TestThreadCount:
    def test_threads(self, artifact: Artifact):
        outputs = [RuntimeModel(artifact.path, threads=threads)(images(4))[0] for threads in (1, 2, 1)]
        torch.testing.assert_close(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])

    def test_it_is_set_and_put_back_and_loaded_models_go_on(self, artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
        model, batch, asked = RuntimeModel(artifact.path), images(4), []
        ask = CHILD.ask

        def noted(task: str, *others: Any, place: dict[str, Any], **named: Any) -> Any:
            asked.append(place["threads"])  # the other process refuses where it gets another number
            return ask(task, *others, place=place, **named)

        monkeypatch.setattr(CHILD, "ask", noted)
        expected = model(batch)[0]
        for threads in (1, 3, 2):
            with thread_count(threads):
                torch.testing.assert_close(model(batch)[0], expected)
        torch.testing.assert_close(model(batch)[0], expected)
        assert asked == [None, 1, 3, 2, None]

    def test_one_of_its_own_counts_more(self, artifact: Artifact):
        model = RuntimeModel(artifact.path, threads=1)
        with thread_count(2):
            assert model(images(4))[0].shape == (4, 3)

    def test_no_thread(self):
        with pytest.raises(ValueError, match="threads must be at least 1, got 0"), thread_count(0):
            pass
