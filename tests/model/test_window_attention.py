"""torchvision's attentions over windows with fewer heads; torchvision's own modules are what they are compared with."""

import copy
import pickle
from typing import Any

import pytest
import torch
from graph_oracle import randomised
from torch import nn

from lightning_prune import Compaction, channel_groups, compact
from lightning_prune.compaction import reshape_like
from lightning_prune.model import window_attention
from lightning_prune.model.attention import let_resize, settled_class

pytest.importorskip("torchvision", reason="torchvision is not installed")
from torchvision.models import SwinTransformer, maxvit, swin_transformer  # pyright: ignore[reportMissingImports]

KINDS = [swin_transformer.ShiftedWindowAttention, swin_transformer.ShiftedWindowAttentionV2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [[0, 0], [2, 2], [2, 0], [1, 3]])
@pytest.mark.parametrize("size", [(8, 8), (10, 7), (4, 4), (4, 12)])
def test_shifted_windows(kind: Any, shift: list[int], size: tuple[int, int]) -> None:
    own = randomised(kind(16, [4, 4], shift, 4))
    let_resize(other := copy.deepcopy(own))
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    assert type(other) is not kind
    assert settled_class(other) is kind
    torch.testing.assert_close(other(x), own(x), rtol=1e-13, atol=1e-13)


def test_groups_of_places() -> None:
    own = randomised(maxvit.RelativePositionalMultiHeadAttention(16, 4, 49))
    let_resize(other := copy.deepcopy(own))
    x = torch.randn(2, 3, 49, 16, dtype=torch.float64)
    torch.testing.assert_close(other(x), own(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("version", [1, 2])
def test_swin_loses_heads_and_hidden_units(version: int) -> None:
    settings: dict[str, Any] = {}
    if version == 2:
        settings = {
            "block": swin_transformer.SwinTransformerBlockV2,
            "downsample_layer": swin_transformer.PatchMergingV2,
        }
    model = randomised(SwinTransformer([2, 2], 32, [2, 2], [2, 4], [4, 4], num_classes=10, **settings))
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    dense = copy.deepcopy(model)
    groups = channel_groups(model, x)
    plan = Compaction.from_keep(groups, {g.name: range(g.size // 2) for g in groups if g.prunable and g.size > 1})
    report = compact(model, plan, x)
    assert not report.put_back
    attentions = [module for module in model.modules() if type(module).__module__ == window_attention.__name__]
    assert [module.num_heads for module in attentions] == [1, 1, 2, 2]
    for other in (
        pickle.loads(pickle.dumps(model)),
        Compaction.from_json(plan.to_json()).rebuild(copy.deepcopy(dense)),
    ):
        assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
    reshape_like(model, dense.state_dict(), plan.attributes).load_state_dict(dense.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in dense.modules()]
    torch.testing.assert_close(model(x), dense(x))


def test_other_names_of_the_module_are_unknown() -> None:
    for name in ("Resizable", "ResizableLinear", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(window_attention, name)
    assert window_attention.torchvisions_own(nn.Linear) is None
