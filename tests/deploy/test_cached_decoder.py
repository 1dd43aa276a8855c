"""Decoders of Hugging Face with their cache in buffers: the same logits, fewer heads, a program."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import Compaction, channel_groups, compact
from lightning_prune.deploy import CachedDecoder, Generation, export

transformers = pytest.importorskip("transformers")
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {},
}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 40,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 64, "n_embd": 48, "n_inner": 96, "n_layer": 2, "n_head": 4, "n_positions": 64}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "attn_implementation": "eager"}


def decoder(kind: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = GPT2 if kind == "gpt2" else SIZES | KINDS[kind]
    config = transformers.CONFIG_MAPPING[kind](**sizes, **TOKENS)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def calls(count: int, prompt: int) -> list[tuple[Tensor, ...]]:
    torch.manual_seed(1)
    return Generation(32, eos=0).calls(torch.randint(64, (count,)).tolist(), prompt)


@torch.no_grad()
def logits(model: nn.Module, row: list[tuple[Tensor, ...]]) -> Tensor:
    return torch.cat([model(*call)[0] for call in row])


@pytest.mark.parametrize("kind", KINDS)
def test_call_by_call_it_gives_what_the_model_gives_at_once(kind: str) -> None:
    model, row = decoder(kind), calls(20, 9)
    with torch.no_grad():
        wanted = model(torch.cat([call[0] for call in row], 1)).logits[0, 8:]
    cached = CachedDecoder(model, max_length=32)
    torch.testing.assert_close(logits(cached, row), wanted, rtol=1e-4, atol=1e-5)
    assert model.config._attn_implementation == "eager"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_its_cache_loses_the_heads_that_the_model_loses(kind: str) -> None:
    cached = CachedDecoder(decoder(kind).double(), max_length=32)
    heads = cached.get_buffer("keys_0").shape[1]
    groups = channel_groups(cached, cached.example_input_array)
    keep = {group.name: range(group.size // 2) for group in groups if group.prunable}
    plan, masked = Compaction.from_keep(groups, keep), copy.deepcopy(cached)
    plan.mask(masked)
    report = compact(cached, plan, cached.example_input_array)
    assert not report.put_back
    assert [cached.get_buffer(f"values_{index}").shape[1] for index in (0, 1)] == [heads // 2] * 2
    torch.testing.assert_close(logits(cached, calls(20, 9)), logits(masked, calls(20, 9)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_model_of_fewer_heads_becomes_a_program(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    cached = CachedDecoder(decoder("qwen3"), max_length=32)
    groups = channel_groups(cached, cached.example_input_array)
    keep = {group.name: range(group.size // 2) for group in groups if group.prunable}
    compact(cached, Compaction.from_keep(groups, keep), cached.example_input_array)
    assert cached.get_buffer("keys_0").shape == (1, 1, 32, 12)
    artifact = export(cached, tmp_path / "model.pte", generation=Generation(32, eos=1))
    assert artifact.max_abs_error < 1e-4
    assert not any("expand_copy" in note for note in artifact.notes)


@pytest.mark.parametrize(
    ("model", "length", "error", "match"),
    [
        (lambda: nn.Linear(2, 2), 32, TypeError, "got a Linear, must be a decoder of transformers"),
        (lambda: decoder("llama"), 1, ValueError, "max_length must be at least 2"),
        (lambda: decoder("llama"), 65, ValueError, "max_length is 65, and LlamaForCausalLM has 64 places"),
    ],
)
def test_what_it_cannot_hold_is_refused(model: Any, length: int, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        CachedDecoder(model(), max_length=length)
