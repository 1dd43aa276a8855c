"""A fit removes heads of torch's own layers and width under RMS norms: as with masks, resumed, on several ranks."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from packages import ModelCheckpoint
from processes import on_ranks
from support import Net, Resumable, loader, trainer
from torch import Tensor, nn

from lightning_prune import Channel, Linear, PruningCallback, Recipe
from lightning_prune.model.attention import ResizableAttention


class Rows(Net):
    """The rows of an image are the places of a sequence."""

    def __init__(self) -> None:
        L.LightningModule.__init__(self)
        self.example_input_array = torch.zeros(2, 1, 6, 6)
        layer = nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True)
        self.into, self.encoder, self.head = nn.Linear(6, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.into(images[:, 0])).mean(1))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fitted(folder: Path, compact_every_event: bool, *callbacks: Any, options: Any = None, **settings: Any) -> Any:
    model = Rows()
    recipe = Recipe(granularity=Channel(), schedule=Linear(0.6, begin_step=2, end_step=8, frequency=2))
    callback = PruningCallback(recipe, compact_every_event=compact_every_event)
    fit = trainer(folder, callback, *callbacks, precision="64-true", **settings)
    fit.fit(model, loader(10) if settings else Resumable(), **(options or {}))
    return model, callback


def heads(model: nn.Module) -> list[tuple[type, int]]:
    return [(type(m), m.num_heads) for m in model.modules() if isinstance(m, nn.MultiheadAttention)]


def test_training_goes_on_as_with_masks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    masked, _ = fitted(tmp_path, False)
    torch.manual_seed(0)
    shrunk, removed = fitted(tmp_path, True)
    assert len(removed.events) >= 3
    assert heads(masked) == heads(shrunk)
    assert any(kind is ResizableAttention and count < 4 for kind, count in heads(shrunk))
    for (path, a), (_, b) in zip(masked.named_parameters(), shrunk.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=path)


@pytest.mark.slow
def test_a_run_stopped_half_way_ends_as_one_never_stopped(tmp_path: Path) -> None:
    def saving(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)

    whole, callback = fitted(tmp_path, True, saving(tmp_path))
    for step in (1, 5, 9):
        torch.manual_seed(step)  # other weights to begin with
        options = {"ckpt_path": tmp_path / f"step={step}.ckpt", "weights_only": True}
        again, resumed = fitted(tmp_path, True, saving(tmp_path / "again"), options=options)
        assert resumed.events == callback.events
        assert heads(again) == heads(whole)
        for (path, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), (step, path)


class Stream(Net):
    """A stream under RMS norms, which takes its width from the first layer."""

    def __init__(self, are_norms_trained: bool) -> None:
        L.LightningModule.__init__(self)
        self.example_input_array = torch.zeros(2, 1, 6, 6)
        self.into, self.norm, self.last = nn.Linear(36, 12), nn.RMSNorm(12, eps=1e-2), nn.RMSNorm(12, eps=1e-2)
        self.up, self.down, self.head = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 4)
        for norm in (self.norm, self.last):
            norm.requires_grad_(are_norms_trained)

    def forward(self, images: Tensor) -> Tensor:
        x = self.into(images.flatten(1))
        return self.head(self.last(x + self.down(torch.relu(self.up(self.norm(x))))))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW((x for x in self.parameters() if x.requires_grad), lr=0.01)


@pytest.mark.parametrize("are_norms_trained", [False, True])
def test_the_width_under_rms_norms_goes_at_every_event(are_norms_trained: bool, tmp_path: Path) -> None:
    recipe = Recipe(granularity=Channel(), schedule=Linear(0.6, begin_step=2, end_step=8, frequency=2))
    models = []
    for shrinks in (False, True):
        torch.manual_seed(0)
        model, callback = Stream(are_norms_trained), PruningCallback(recipe, compact_every_event=shrinks)
        trainer(tmp_path, callback, precision="64-true").fit(model, Resumable())
        assert len(callback.events) >= 3
        models.append(model.eval())
    masked, shrunk = models
    width = shrunk.into.out_features
    assert width < 12
    for norm in (shrunk.norm, shrunk.last):
        assert norm.normalized_shape == (width,)
        assert norm.eps == pytest.approx(1e-2 * 12 / width, rel=1e-12)
    if not are_norms_trained:  # a larger weight of a norm takes relatively smaller steps
        for (path, a), (_, b) in zip(masked.named_parameters(), shrunk.named_parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=path)


def on_a_rank(folder: str) -> Any:
    torch.manual_seed(0)
    model, callback = fitted(Path(folder), True, strategy="ddp", devices=2)
    return [e.step for e in callback.events], {n: p.numpy() for n, p in model.state_dict().items()}, heads(model)


@pytest.mark.slow
def test_ranks_lose_the_same_heads(tmp_path: Path) -> None:
    (events, weights, left), (other_events, others, other_left) = on_ranks(on_a_rank, 2, str(tmp_path))
    assert events == other_events
    assert left == other_left
    assert any(count < 4 for _, count in left)
    assert all((weights[name] == others[name]).all() for name in weights)
