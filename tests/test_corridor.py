"""The whole corridor on real data: train, prune, compact, export, run the .pte, load the checkpoint."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import L, ModelCheckpoint
from support import trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import (
    Channel,
    Global,
    Mask,
    Polynomial,
    PruningCallback,
    PruningMixin,
    Recipe,
    Targets,
    Taylor,
    summarize,
)
from lightning_prune.model import masks

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)"
)


class Digits(PruningMixin, L.LightningModule):
    """A residual batch-norm CNN for 8x8 handwritten digits."""

    example_input_array = torch.zeros(1, 1, 8, 8)  # type: ignore[assignment]

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.outer = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images)
        hidden = relu(self.outer(hidden + relu(self.norm(self.inner(hidden)))))
        return self.head(self.pool(hidden).flatten(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def digits() -> tuple[DataLoader[Any], DataLoader[Any]]:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = TensorDataset(inputs, torch.tensor(labels))
    train, test = torch.utils.data.random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    return DataLoader(train, 64, shuffle=True), DataLoader(test, 180)


RECIPE = Recipe(
    granularity=Channel(),
    schedule=Polynomial(final_sparsity=0.6, begin_step=50, end_step=180, frequency=20),
    criterion=Taylor(),
    allocation=Global(),
    targets=Targets(include=("*",), exclude=()),
    count="channels",
    optimizer_policy=Mask(),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Digits, L.Trainer, PruningCallback, Path]:
    torch.manual_seed(0)
    folder, model, callback = tmp_path_factory.mktemp("corridor"), Digits(), PruningCallback(RECIPE)
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=115, save_top_k=-1)
    run = trainer(folder, callback, saving, max_epochs=10)
    run.fit(model, *digits())
    return model, run, callback, folder


def test_a_smaller_network_that_still_reads_digits(trained: Any) -> None:
    model, run, callback, _ = trained
    assert [type(m) for m in model.modules()] == [type(m) for m in Digits().modules()]
    assert not masks.is_masked(model)
    summary, dense = summarize(model), summarize(Digits())
    # inner is added to what it reads: two groups, 32 channels each
    assert model.inner.in_channels == model.inner.out_channels
    assert model.inner.out_channels + model.outer.out_channels == 64 - round(0.6 * 64)
    assert callback.events[-1].params == summary.parameters < 0.25 * dense.parameters
    assert callback.events[-1].macs == summary.macs
    assert summary.macs is not None
    assert dense.macs is not None
    assert summary.macs < 0.25 * dense.macs
    assert run.callback_metrics["val_acc"] > 0.93


def test_the_checkpoints_tell_the_same(trained: Any) -> None:
    model, run, _, folder = trained
    run.save_checkpoint(folder / "done.ckpt")
    images = next(iter(digits()[1]))[0]
    with torch.no_grad():
        assert torch.equal(Digits.load_from_checkpoint(folder / "done.ckpt").eval()(images), model.eval()(images))
    halfway = Digits.load_from_checkpoint(folder / "step=115.ckpt")
    assert masks.is_masked(halfway)
    assert halfway.inner.out_channels == 32


@needs_executorch
def test_the_file_is_as_good_as_the_model(trained: Any, tmp_path: Path) -> None:
    model, _, _, _ = trained
    model.train()
    data = digits()[1]
    artifact = model.to_executorch(
        tmp_path / "digits.pte", verify_on=data, metric=MulticlassAccuracy(10, average="micro")
    )
    assert artifact.max_abs_error <= 1e-4
    assert artifact.verified_samples == 360
    assert artifact.changed_predictions <= 1
    assert abs(artifact.metrics["eager"] - artifact.metrics["executorch"]) <= 1 / 360
    assert artifact.parameters == sum(p.numel() for p in model.parameters())
    assert (tmp_path / "digits.json").exists()
    assert model.training
