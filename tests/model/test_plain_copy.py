"""Copies compute what the original computes, with weights of their own; so do compiled modules."""

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_prune import Channel, Element, Linear, PruningCallback, Recipe, channel_groups
from lightning_prune.model.plain_copy import plain_copy


@pytest.mark.parametrize("place", ["inside", "around"])
def test_a_compiled_module_computes_in_a_copy_with_the_copys_weights(place: str):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3)).eval()
    model = (
        torch.compile(net, backend="eager") if place == "around" else nn.Sequential(torch.compile(net, backend="eager"))  # type: ignore
    )
    x = torch.randn(1, 3, 8, 8)
    expected = model(x)
    copied = plain_copy(plain_copy(model))  # pyright: ignore[reportArgumentType]
    assert torch.equal(copied(x), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not copied(x).any()
    assert torch.equal(model(x), expected)
    assert any(group.prunable for group in channel_groups(model, x))  # pyright: ignore[reportArgumentType]


class Compiled(L.LightningModule):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        if in_place:
            self.net.compile(backend="eager")
        else:
            self.net = torch.compile(self.net, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # pyright: ignore[reportCallIssue]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch's trace looks at masked weights
@pytest.mark.parametrize("in_place", [True, False], ids=["model.compile()", "torch.compile(model)"])
@pytest.mark.parametrize("granularity", [Channel(), Element()], ids=["channels", "elements"])
def test_a_compiled_module_is_pruned(granularity: Channel | Element, in_place: bool):
    torch._dynamo.reset()
    model, batches = Compiled(in_place), torch.randn(8, 2, 3, 8, 8)
    recipe = Recipe(granularity=granularity, schedule=Linear(final_sparsity=0.5, end_step=0.5, frequency=2))
    callback = PruningCallback(recipe)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, callbacks=[callback], **options)  # type: ignore
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))  # pyright: ignore[reportArgumentType]
    assert len(callback.events) == 2
    first = next(model.parameters())
    if isinstance(granularity, Channel):
        assert first.shape[0] == 4
    else:
        assert callback.sparsity == pytest.approx(0.5, abs=0.01)
    uncompiled = plain_copy(model)
    assert torch.equal(uncompiled.eval()(batches[0]), model.eval()(batches[0]))
