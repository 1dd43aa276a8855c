"""``nn.MultiheadAttention`` loses heads: exact against torch's own module, undone and redone with everything else."""

import copy
import pickle
from typing import Any

import pytest
import torch
from compaction_cases import everything, half_of
from graph_oracle import randomised
from torch import Tensor, nn

from lightning_prune import channel_groups, compact, finalize, summarize
from lightning_prune.compaction import Compaction, Removal, reshape_like, resize
from lightning_prune.errors import CompactionError
from lightning_prune.graph import ChannelGroups
from lightning_prune.model import masks
from lightning_prune.model.attention import ResizableAttention

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)


class Encoder(nn.Module):
    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padded))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 4, 12, batch_first=True), 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.decoder(x, memory, tgt_mask=mask))


class Crossing(nn.Module):
    """One sequence looks at another, of other widths; what is given goes on to the attention."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, kdim=6, vdim=5, **settings)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        return self.head(self.attention(x, key, value, **given)[0])


def halved(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[nn.Module, ChannelGroups]:
    """Remove half of every group, compare with torch's own module under masks; return the compact model."""
    model = randomised(model)
    args = tuple(x.double() if x.is_floating_point() else x for x in args)
    groups = channel_groups(model, args, kwargs)
    plan = Compaction.from_keep(groups, half_of(groups))
    plan.mask(masked := copy.deepcopy(model))
    report = compact(model, plan, args, example_kwargs=kwargs)
    assert not report.put_back
    assert max(report.errors.values()) < 1e-13
    with torch.enable_grad():  # torch's layers as they are written, which give no zeros where a sequence is padded
        torch.testing.assert_close(model(*args, **kwargs), masked(*args, **kwargs), rtol=1e-12, atol=1e-12)
    return model, groups


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("given", [(), (PADDED,)])
def test_an_encoder_loses_heads_and_hidden_units(norm_first: bool, given: tuple[Tensor, ...]) -> None:
    model, groups = halved(Encoder(norm_first), X, *given)
    sizes = {group.name: group.size for group in groups if group.prunable}
    assert sizes == {f"encoder.layers.{n}.{name}": size for n in (0, 1) for name, size in PARTS.items()}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            assert type(module) is ResizableAttention
            assert (module.num_heads, module.head_dim, module.embed_dim) == (2, 2, 8)
            assert module.in_proj_weight.shape == (12, 8)
            assert module.out_proj.weight.shape == (8, 4)


PARTS = {"self_attn": 4, "linear1": 12}


def test_it_equals_torchs_fast_path() -> None:
    model = randomised(Encoder(False))
    groups = channel_groups(model, X.double())
    plan = Compaction.from_keep(groups, half_of(groups))
    plan.mask(masked := copy.deepcopy(model))
    compact(model, plan, X.double())
    with torch.no_grad():
        torch.testing.assert_close(model(X.double()), masked(X.double()), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mask", [None, CAUSAL.double(), CAUSAL < 0])
def test_a_decoder_loses_heads_of_both_attentions(mask: Tensor | None) -> None:
    model, groups = halved(Decoder(), X, X[:, :4], *(() if mask is None else (mask,)))
    assert {group.name.rpartition(".")[2] for group in groups if group.prunable} == {
        "self_attn",
        "multihead_attn",
        "linear1",
    }
    assert model.decoder.layers[1].multihead_attn.num_heads == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"need_weights": False},
        {"key_padding_mask": PADDED},
        {"attn_mask": CAUSAL < 0},
        {"attn_mask": CAUSAL < 0, "need_weights": False, "key_padding_mask": PADDED},
    ],
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_masks_and_other_widths(given: dict[str, Any], batch_first: bool) -> None:
    inputs = X, X[..., :6], X[..., :5]
    inputs = inputs if batch_first else tuple(x.transpose(0, 1) for x in inputs)
    model, _ = halved(Crossing(batch_first=batch_first, dropout=0.1, bias=not given), *inputs, **given)
    assert model.attention.q_proj_weight.shape == (4, 8)  # type: ignore[union-attr]
    assert model.attention.k_proj_weight.shape == (4, 6)  # type: ignore[union-attr]


def test_a_module_used_twice_and_weights_that_are_shared() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.MultiheadAttention(8, 4, batch_first=True)
            self.second = nn.MultiheadAttention(8, 4, batch_first=True)
            self.second.in_proj_weight, self.second.in_proj_bias = self.first.in_proj_weight, self.first.in_proj_bias
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            for attention in (self.first, self.first, self.second):
                x = x + attention(x, x, x)[0]
            return self.head(x)

    model, groups = halved(Shared(), X)
    assert [group.size for group in groups if group.prunable] == [4]
    assert model.first.num_heads == model.second.num_heads == 2  # type: ignore[union-attr]


class Answering(nn.Module):
    """Gives the attention's weights as well."""

    def __init__(self, average: bool, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True, **settings)
        self.average = average

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.attention(x, x, x, attn_mask=mask, average_attn_weights=self.average)


@pytest.mark.parametrize(
    ("model", "mask", "reason"),
    [
        (Answering(True, add_bias_kv=True), None, "adds a key and a value of its own (add_bias_kv)"),
        (Answering(True, add_zero_attn=True), None, "adds a key and a value of zeros (add_zero_attn)"),
        (Answering(True), torch.zeros(8, 5, 5), "takes a mask for each head, of (batch * num_heads, L, S)"),
    ],
)
def test_what_holds_the_number_of_heads_keeps_them_and_says_why(model: nn.Module, mask: Any, reason: str) -> None:
    groups = channel_groups(model, X if mask is None else (X, mask))
    (own,) = (
        group for group in groups if ("attention.in_proj_weight", 0) in {(m.parameter, m.axis) for m in group.members}
    )
    assert not own.prunable
    assert reason in own.reason


@pytest.mark.parametrize("average", [True, False])
def test_where_weights_are_read_heads_stay_and_their_width_goes(average: bool) -> None:
    model: Any = Answering(average)
    groups = channel_groups(model, X)
    assert {group.name: group.size for group in groups if group.prunable} == {"attention": 2}
    shape = model(X)[1].shape
    assert compact(model, Compaction.from_keep(groups, {"attention": [1]}), X).errors["float64"] <= 1e-12
    assert (model(X)[1].shape, model.attention.num_heads, model.attention.out_proj.in_features) == (shape, 4, 4)


def test_a_plan_that_takes_a_part_of_a_head_is_refused() -> None:
    class Reading(Answering):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
            return super().forward(x, mask)[0]

    model = Reading(average=True)
    groups = channel_groups(model, X)
    assert groups.attributes == {"attention.num_heads": ("attention.in_proj_weight", 0)}
    rows = {0: (0, 8, 16)}
    entries = {"attention.in_proj_weight": rows, "attention.in_proj_bias": rows, "attention.out_proj.weight": {1: (0,)}}
    plan = Compaction(groups.shapes, {"attention": Removal(8, 1, entries)}, groups.attributes)
    before = everything(model)
    with pytest.raises(
        CompactionError, match=r"attention.num_heads = 4 follows a length .* remove whole multiples of 6"
    ):
        compact(model, plan, X)
    assert everything(model) == before


def test_looking_leaves_the_model_as_it_is_and_a_removal_is_undone() -> None:
    model = Encoder().eval()
    before = everything(model)
    groups = channel_groups(model, X)
    summarize(model, X)
    plan = Compaction.from_keep(groups, half_of(groups))
    with pytest.raises(CompactionError, match="does not run"):
        compact(model, plan, X[..., :7])
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    undo: resize.Undo = []
    resize.cut(model, plan.keep, plan.attributes, undo)
    assert {type(module) for module in attentions} == {ResizableAttention}
    for step in reversed(undo):
        step()
    assert everything(model) == before
    assert all(type(module) is nn.MultiheadAttention and module._qkv_same_embed_dim for module in attentions)


def test_the_summary_counts_the_heads_that_are_left() -> None:
    dense = Encoder().eval()
    groups = channel_groups(dense, X)
    compact(model := copy.deepcopy(dense), Compaction.from_keep(groups, half_of(groups)), X)
    first = "encoder.layers.0.self_attn"
    rows = [{row.name: row for row in summarize(one, X).layers} for one in (dense, model)]
    for name in (first, f"{first}.out_proj"):
        before, after = (own[name].macs for own in rows)
        assert before is not None
        assert after == before // 2
    summary = summarize(model, X)
    assert sum(row.macs or 0 for row in summary.layers) == summary.macs


def test_plans_states_copies_and_programs_know_it() -> None:
    model = Encoder().eval()
    groups = channel_groups(model, X)
    parameters = dict(model.named_parameters())
    plan = Compaction.from_keep(groups, half_of(groups))
    compact(model, plan, X)
    assert all(parameters[name] is own for name, own in model.named_parameters())
    expected = model(X)
    rebuilt = Compaction.from_json(plan.to_json()).rebuild(Encoder().eval())
    rebuilt.load_state_dict(model.state_dict())
    for other in (rebuilt, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(X), expected)
    exported = torch.export.export(model, (X,)).module()
    torch.testing.assert_close(exported(X), expected)
    reshape_like(model, Encoder().state_dict(), plan.attributes)
    assert {type(m) for m in model.modules() if isinstance(m, nn.MultiheadAttention)} == {nn.MultiheadAttention}
    model.load_state_dict(Encoder().state_dict())
    assert model(X).shape == expected.shape


def test_heads_that_masks_cover_go_at_the_end_and_without_a_removal_the_class_is_torchs() -> None:
    model = Encoder().eval()
    groups = channel_groups(model, X)
    plan = Compaction.from_keep(groups, {"encoder.layers.0.self_attn": [1, 3]})
    masks.attach(model, [name for name, p in masks.dense_parameters(model).items()], is_structured=True)
    covers = {name: torch.ones_like(p, dtype=torch.bool) for name, p in masks.dense_parameters(model).items()}
    for name, axes in plan.masked.items():
        for axis, gone in axes.items():
            covers[name].index_fill_(axis, torch.tensor(gone), False)
    masks.write(model, covers.items())
    expected = model(X)
    folded = copy.deepcopy(model)
    masks.fold(folded)
    assert {type(m) for m in folded.modules() if isinstance(m, nn.MultiheadAttention)} == {nn.MultiheadAttention}
    finalize(model, X)
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    assert [attention.num_heads for attention in attentions] == [2, 4]
    assert [type(attention) for attention in attentions] == [ResizableAttention, nn.MultiheadAttention]
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
