"""Models that keep tensors beside their parameters, computed before the removal."""

import copy
from typing import Any

import pytest
import torch
from compaction_cases import everything
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.errors import CompactionError
from lightning_prune.graph import channel_groups

X = torch.randn(2, 5, 8, dtype=torch.float64)


class Biased(nn.Module):
    """Attention with a bias for each head and distance, cached in eval mode as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 4, 4
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 8)
        self.table = nn.Parameter(torch.randn(4, 5))
        self.index: Tensor
        self.register_buffer("index", (torch.arange(5)[:, None] - torch.arange(5)).abs(), persistent=False)
        self.cache: dict[str, Tensor] = {}

    def bias(self, device: torch.device) -> Tensor:
        if self.training:
            return self.table[:, self.index]
        if str(device) not in self.cache:
            self.cache[str(device)] = self.table[:, self.index]
        return self.cache[str(device)]

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.reshape(b, n, self.heads, self.head_dim).transpose(1, 2) for part in parts)
        weights = (q @ k.transpose(-1, -2) + self.bias(x.device)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, -1))


def half(model: nn.Module) -> Compaction:
    groups = channel_groups(model, X)
    return Compaction.from_keep(groups, {name: [0, 3] for name in ("0.qkv", "1.qkv")})


def test_a_cache_that_was_filled_before_is_emptied() -> None:
    model = nn.Sequential(Biased(), Biased()).double().eval()
    fresh = copy.deepcopy(model)
    before = model(X)
    plan = half(model)
    assert plan == half(fresh)
    plan.mask(fresh)
    assert not torch.equal(fresh(X), before)
    report = compact(model, plan, X)
    assert report.put_back == {}
    assert [module.cache for module in model] == [{}, {}]  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.allclose(model(X), fresh(X), rtol=0, atol=1e-14)
    assert model.training is False


def test_an_error_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    class Once(Biased):
        broken = False

        def forward(self, x: Tensor) -> Tensor:
            if self.broken and self.heads == 2:
                raise RuntimeError("not on this machine")
            return super().forward(x)

        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            twin = Biased()
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
            return twin

    model = nn.Sequential(Once(), Biased()).double().eval()
    model(X)
    cache: Any = model[0].cache
    plan, before = half(model), everything(model)
    monkeypatch.setattr(Once, "broken", True)
    with pytest.raises(
        CompactionError, match=r"does not run: RuntimeError: not on this machine\. 0\.cache, 1\.cache ho"
    ):
        compact(model, plan, X)
    assert everything(model) == before
    assert model[0].cache is cache
    assert cache.keys() == {"cpu"}


class Stale(Biased):
    """The bias is computed once and kept as a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def bias(self, device: torch.device) -> Tensor:
        if self.kept is None:
            self.kept = self.table.detach()[:, self.index]
        return self.kept


def test_a_tensor_that_no_run_computes_anew_is_named() -> None:
    model = nn.Sequential(Stale(), Biased()).double().eval()
    plan = half(model)
    model(X)
    report = compact(model, plan, X)
    assert report.removed == {"1.qkv": (2, 4)}
    assert "what it keeps beside its parameters (kept) was computed before" in report.put_back["0.qkv"]
