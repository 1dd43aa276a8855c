"""The module that can lose heads computes what torch's own does, whatever it is given."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.model.attention import (
    ResizableAttention,
    calling_projections,
    let_resize,
    set_class,
    settled_class,
    why_rigid,
    without_fast_path,
)

QUERY, KEY, VALUE = (
    torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for shape in ((2, 5, 12), (2, 7, 8), (2, 7, 6))
)
PADDED = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
BANNED = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) > 0.6
BANNED[:, 0] = False
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
OF_HEADS = torch.randn(2 * 3, 5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def both(**settings: Any) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    own = nn.MultiheadAttention(12, 3, dtype=torch.float64, **settings).eval()
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    other = copy.deepcopy(own)
    let_resize(other)
    return own, other


def check_same(own: nn.Module, other: nn.Module, *args: Tensor, **kwargs: Any) -> None:
    with without_fast_path():
        (outputs, weights), (others, other_weights) = own(*args, **kwargs), other(*args, **kwargs)
    torch.testing.assert_close(others, outputs, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(other_weights, weights, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": BANNED},
        {"attn_mask": OF_HEADS, "need_weights": False},
        {"attn_mask": OF_HEADS},
        {"key_padding_mask": PADDED},
        {"key_padding_mask": PADDED, "attn_mask": BANNED},
        {"key_padding_mask": PADDED, "attn_mask": BANNED, "need_weights": False},
    ],
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_it_is_torchs_module_with_separate_projections(given: dict[str, Any], batch_first: bool) -> None:
    inputs = (QUERY, KEY, VALUE) if batch_first else tuple(x.transpose(0, 1) for x in (QUERY, KEY, VALUE))
    check_same(*both(kdim=8, vdim=6, batch_first=batch_first), *inputs, **given)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"attn_mask": CAUSAL},
        {"attn_mask": CAUSAL, "is_causal": True},
        {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
        {"attn_mask": CAUSAL < 0, "is_causal": True, "need_weights": False, "key_padding_mask": PADDED[:, 2:]},
    ],
)
def test_it_is_torchs_module_with_packed_projections(given: dict[str, Any], bias: bool) -> None:
    check_same(*both(bias=bias, batch_first=True), QUERY, QUERY, QUERY, **given)


def test_one_sequence_without_a_batch() -> None:
    for needs, average in itertools.product((True, False), (True, False)):
        given: dict[str, Any] = {"need_weights": needs, "average_attn_weights": average}
        check_same(*both(kdim=8, vdim=6), QUERY[0], KEY[0], VALUE[0], attn_mask=OF_HEADS[:3], **given)
        check_same(*both(kdim=8, vdim=6), QUERY[0], KEY[0], VALUE[0], key_padding_mask=PADDED[1], **given)


@pytest.mark.parametrize("need_weights", [True, False])
def test_in_training_it_drops_the_same_weights(need_weights: bool) -> None:
    outputs = []
    for attention in both(dropout=0.4, batch_first=True):
        torch.manual_seed(3)
        outputs.append(attention.train()(QUERY, QUERY, QUERY, need_weights=need_weights)[0])
    torch.testing.assert_close(*outputs, rtol=1e-13, atol=1e-13)
    assert not torch.equal(outputs[0], both(batch_first=True)[0](QUERY, QUERY, QUERY)[0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_leaves_padding_out_gives_zeros_there() -> None:
    layer = nn.TransformerEncoderLayer(12, 4, 8, batch_first=True, dtype=torch.float64)
    own = nn.TransformerEncoder(layer, 2).eval()
    let_resize(other := copy.deepcopy(own))
    with torch.no_grad():
        outputs, others = (encoder(QUERY, src_key_padding_mask=PADDED[:, 2:]) for encoder in (own, other))
    torch.testing.assert_close(others, outputs, rtol=1e-12, atol=1e-12)
    assert not others[1, 2:].any()


def test_a_mask_of_heads_that_are_gone_says_how_many_are_left() -> None:
    attention = both(kdim=8, vdim=6, batch_first=True)[1]
    with pytest.raises(RuntimeError, match=r"shape \(8, 5, 7\), and a batch of 2 needs 6 masks for the 3 heads"):
        attention(QUERY, KEY, VALUE, attn_mask=torch.zeros(8, 5, 7, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="is_causal"):
        attention(QUERY, KEY, VALUE, is_causal=True)


def test_the_class_is_set_and_nothing_else_moves() -> None:
    own, other = both(batch_first=True)
    assert list(own.state_dict()) == list(other.state_dict())
    assert type(other) is ResizableAttention
    assert settled_class(other) is nn.MultiheadAttention
    set_class(other, settled_class(other))
    assert type(other) is nn.MultiheadAttention
    assert other._qkv_same_embed_dim
    narrow = both(kdim=8, vdim=6)[1]
    set_class(narrow, nn.MultiheadAttention)
    assert not narrow._qkv_same_embed_dim, "as torch has it where key and value are of other widths"


def test_projections_are_called_for_a_while() -> None:
    own, _ = both(batch_first=True)
    seen: list[Tensor] = []
    own.out_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with calling_projections(own):
        own(QUERY, QUERY, QUERY)
    with pytest.raises(AttributeError), calling_projections(own):
        own(None, QUERY, QUERY)
    own(QUERY, QUERY, QUERY)
    assert [tuple(x.shape) for x in seen] == [(2, 5, 12)]
    assert type(own) is nn.MultiheadAttention
    assert own._qkv_same_embed_dim


def test_what_adds_keys_or_computes_otherwise_stays() -> None:
    class Own(nn.MultiheadAttention):
        pass

    rigid = [
        nn.MultiheadAttention(4, 2, add_bias_kv=True),
        nn.MultiheadAttention(4, 2, add_zero_attn=True),
        Own(4, 2),
    ]
    assert [why_rigid(attention)[:30] for attention in rigid] == [
        "adds a key and a value of its ",
        "adds a key and a value of zero",
        "keeps its size",
    ]
    before = [type(attention) for attention in rigid]
    let_resize(nn.ModuleList(rigid))
    assert [type(attention) for attention in rigid] == before == [settled_class(attention) for attention in rigid]
    assert not why_rigid(nn.MultiheadAttention(4, 2))


def test_masks_for_each_head_are_noted() -> None:
    first, second = nn.MultiheadAttention(12, 3, batch_first=True), nn.MultiheadAttention(12, 3, batch_first=True)
    noted = let_resize(nn.ModuleList([first, second]))
    x = QUERY.float()
    first(x, x, x, attn_mask=torch.zeros(5, 5))
    second(x, x, x, attn_mask=torch.zeros(6, 5, 5))
    assert noted == {second}
