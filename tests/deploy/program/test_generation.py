"""What a decoder says of itself, and the calls that it is compared on."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.deploy import Artifact, Generation, RuntimeModel, export, load_manifest, verify
from lightning_prune.deploy.artifact.manifest import to_text
from lightning_prune.deploy.program.generation import check_call, example, texts
from lightning_prune.errors import ExportError, VerificationError

EXAMPLES = Path(__file__).parents[3] / "examples"
TOLD = Generation(16, eos=[2, 3], bos=1).constants(10)


class Sum(nn.Module):
    """A decoder of one buffer: the logits are those of all tokens so far."""

    def __init__(self, length: int = 16) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(10, 4), nn.Linear(4, 10)
        self.register_buffer("held", torch.zeros(1, length, 4))
        self.places = torch.arange(length)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        held = self.get_buffer("held")
        held.index_copy_(1, position, self.words(tokens))
        seen = (self.places <= position[-1]).to(held.dtype)
        return self.head((held * seen[None, :, None]).sum(1, keepdim=True))


class TestGeneration:
    def test_a_text_is_a_prompt_and_then_one_token_a_call(self) -> None:
        calls = Generation(8, eos=0).calls([5, 6, 7, 8], prompt=2)
        assert [tokens.tolist() for tokens, _ in calls] == [[[5, 6]], [[7]], [[8]]]
        assert [position.tolist() for _, position in calls] == [[0, 1], [2], [3]]

    @pytest.mark.parametrize(("count", "prompt"), [(9, 1), (0, 0), (3, 0), (3, 4)])
    def test_a_text_that_does_not_fit_is_refused(self, count: int, prompt: int) -> None:
        with pytest.raises(ValueError, match=f"^Generation.calls: {prompt} of {count} tokens"):
            Generation(8, eos=0).calls([1] * count, prompt)

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"max_length": 1, "eos": 0}, ValueError, "max_length must be at least 2"),
            ({"max_length": 8, "eos": []}, TypeError, "eos must be a token or a list"),
            ({"max_length": 8, "eos": -1}, ValueError, "eos must be at least 0"),
            ({"max_length": 8, "eos": "end"}, TypeError, "eos must be a token or a list"),
            ({"max_length": 8, "eos": 0, "bos": 1.5}, TypeError, "bos must be an int"),
        ],
        ids=str,
    )
    def test_it_is_checked(self, options: dict[str, Any], error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            Generation(**options)

    def test_the_names_are_those_that_runners_ask_for(self) -> None:
        assert TOLD == {
            "get_max_seq_len": 16,
            "get_max_context_len": 16,
            "get_vocab_size": 10,
            "get_eos_ids": [2, 3],
            "get_bos_id": 1,
            "use_kv_cache": True,
            "use_sdpa_with_kv_cache": False,
            "enable_dynamic_shape": True,
        }

    def test_random_texts_reach_both_ends_of_the_cache(self) -> None:
        rows = texts(TOLD).calls
        assert [row[0][0].shape[1] for row in rows] == [1, 8]
        assert int(rows[-1][-1][1]) == 15
        for row in rows:
            assert torch.cat([position for _, position in row]).tolist() == list(range(sum(len(p) for _, p in row)))
            for call in (*row, example(TOLD)):
                check_call(TOLD, call)
        longer = texts(Generation(64, eos=0).constants(10)).calls
        assert [row[0][0].shape[1] for row in longer] == [1, 32, 56]
        assert int(longer[-1][-1][1]) == 63

    @pytest.mark.parametrize(
        ("tokens", "position", "match"),
        [(3, 16, "position: got 16, and the cache has places 0 to 15"), (3, -1, "position: got -1"), (10, 3, "0 to 9")],
    )
    def test_a_call_out_of_range_is_refused(self, tokens: int, position: int, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            check_call(TOLD, (torch.tensor([[tokens]]), torch.tensor([position])))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    return export(Sum(), tmp_path_factory.mktemp("text") / "sum.pte", generation=Generation(16, eos=[2, 3], bos=1))


class TestExported:
    def test_file_and_manifest_say_it(self, artifact: Artifact) -> None:
        program = RuntimeModel(artifact.path)
        assert program.constants == {k: tuple(v) if isinstance(v, list) else (v,) for k, v in TOLD.items()}
        assert load_manifest(artifact.path)["generation"] == TOLD
        assert [str(each) for each in artifact.inputs] == ["tokens (1, 1…16) int64", "position (1…16,) int64"]
        assert artifact.verification.inputs == "random texts"

    def test_it_verifies_against_its_model_alone(self, artifact: Artifact) -> None:
        torch.manual_seed(0)
        model = Sum()
        assert verify(artifact.path, model).max_abs_error < 1e-5
        model.head.bias.data += 1
        with pytest.raises(VerificationError):
            verify(artifact.path, model)

    @pytest.mark.parametrize(
        ("tokens", "position", "match"),
        [
            (torch.zeros(1, 17, dtype=torch.long), torch.arange(17), r"takes \(1, 1…16\) int64"),
            (torch.zeros(1, 1, dtype=torch.int32), torch.arange(1), r"got \(1, 1\) int32"),
            (torch.zeros(1, 1, dtype=torch.long), torch.tensor([16]), "the cache has places 0 to 15"),
        ],
        ids=["prompt longer than the cache", "dtype", "position"],
    )
    def test_what_it_cannot_take_is_told(
        self, artifact: Artifact, tokens: Tensor, position: Tensor, match: str
    ) -> None:
        with pytest.raises(ValueError, match=match):
            RuntimeModel(artifact.path)(tokens, position)

    def test_a_manifest_with_other_kinds_is_refused(self, artifact: Artifact, tmp_path: Path) -> None:
        manifest = json.loads(artifact.manifest_path.read_text(encoding="utf-8"))
        manifest["generation"]["get_max_context_len"] = "16"
        (tmp_path / "sum.json").write_text(to_text(manifest), encoding="utf-8")
        with pytest.raises(ExportError, match="get_max_context_len must be an int"):
            load_manifest(tmp_path / "sum.json")


class AllLogits(Sum):
    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        return super().forward(tokens, position).expand(1, tokens.shape[1], 10)


class Forgetful(Sum):
    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        return self.head(self.words(tokens)[:, -1:])


class TestRefused:
    @pytest.mark.parametrize(
        ("model", "match"),
        [(AllLogits, r"return logits\[:, -1:\]"), (Forgetful, "keeps nothing from call to call")],
    )
    def test_what_is_no_decoder_with_a_cache(self, model: type[Sum], match: str, tmp_path: Path) -> None:
        pytest.importorskip("executorch")
        with pytest.raises(ExportError, match=match):
            export(model(), tmp_path / "model.pte", generation=Generation(16, eos=0))

    @pytest.mark.parametrize(
        "options",
        [{"example_inputs": torch.zeros(1, 1)}, {"dynamic_shapes": {}}, {"constants": {"get_eos_ids": 5}}],
        ids=lambda options: next(iter(options)),
    )
    def test_what_it_says_itself(self, options: dict[str, Any], tmp_path: Path) -> None:
        pytest.importorskip("executorch")
        with pytest.raises(ValueError, match=next(iter(options))):
            export(Sum(), tmp_path / "model.pte", generation=Generation(16, eos=0), **options)

    @pytest.mark.parametrize("wrong", [32, {"max_length": 16, "eos": 0}, Generation], ids=str)
    def test_what_is_no_generation(self, wrong: Any, tmp_path: Path) -> None:
        pytest.importorskip("executorch")
        with pytest.raises(TypeError, match=r"generation: got .*, must be a value such as Generation\(max_length=128"):
            export(Sum(), tmp_path / "model.pte", generation=wrong)
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_executorchs_own_runner_writes_what_the_model_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, artifact: Artifact
) -> None:
    """Byte for byte, with the tokenizer that the example writes."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runner = pytest.importorskip("executorch.extension.llm.runner")
    import code_model_data  # pyright: ignore[reportMissingImports]
    import code_model_decoder  # pyright: ignore[reportMissingImports]

    class Printable(code_model_decoder.Decoder):
        """Of bytes that are characters by themselves: the runner hands out no others in Python."""

        def forward(self, tokens: Tensor, position: Tensor | None = None) -> Tensor:
            is_shown = (torch.arange(256) >= 32) & (torch.arange(256) < 127)
            return super().forward(tokens, position) + torch.where(is_shown, 0.0, -1e4)

    torch.manual_seed(0)
    model = Printable(32, 4, 2, 64, 1, 48).eval()
    nn.init.normal_(model.words.weight)
    export(model, tmp_path / "model.pte", generation=Generation(48, eos=0))
    tokenizer = code_model_data.write_tokenizer(tmp_path / "tokenizer.json")
    prompt, pieces = "def f(", list[str]()
    program = runner.TextLLMRunner(str(tmp_path / "model.pte"), str(tokenizer))
    config = runner.GenerationConfig(echo=False, max_new_tokens=24, temperature=0.0)
    program.generate(prompt, config, pieces.append)
    written = code_model_data.tokens(prompt)
    with torch.no_grad():
        for _ in pieces:
            written.append(int(model(torch.tensor([written]))[0, -1].argmax()))
    assert len(pieces) == 24
    assert "".join(pieces) == bytes(written[len(prompt) :]).decode()
    with pytest.raises(RuntimeError):
        program.generate("x" * 48, config)
    for name in ("code_model_data", "code_model_decoder"):
        sys.modules.pop(name, None)
