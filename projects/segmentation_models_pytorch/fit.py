"""Unet, FPN and DeepLabV3+ on discs, as in the binary segmentation example of segmentation_models_pytorch."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from projects.common import Case, run


class SegmentationModel(pl.LightningModule):
    """The module of the example, without its metrics."""

    def __init__(self, arch: str, encoder_name: str, in_channels: int, out_classes: int, **options: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = smp.create_model(
            arch,
            encoder_name=encoder_name,
            encoder_weights=None,
            in_channels=in_channels,
            classes=out_classes,
            **options,
        )
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.loss_fn = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)

    def forward(self, image: Tensor) -> Tensor:
        """Normalize and predict the mask."""
        image = (image - self.mean) / self.std
        return self.model(image)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the dice loss."""
        return self.loss_fn(self.forward(batch["image"]), batch["mask"])

    def configure_optimizers(self) -> Any:
        """Return Adam under a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=24, eta_min=1e-5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1}}


class Discs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Noisy images with a brighter disc."""

    def __len__(self) -> int:
        """Return the number of images."""
        return 48

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return an image and its mask."""
        draw = torch.Generator().manual_seed(index)
        x, y, radius = torch.rand(3, generator=draw)
        axis = torch.linspace(0, 1, 64)
        mask = ((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2 < (0.1 + 0.2 * radius) ** 2).float()[None]
        return {"image": 0.3 * torch.rand(3, 64, 64, generator=draw) + 0.5 * mask, "mask": mask}


class Segmentation(Case):
    """One architecture with one encoder."""

    def __init__(self, name: str, arch: str, encoder: str, **options: Any) -> None:
        self.name, self.arch, self.encoder, self.options = name, arch, encoder, options

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Train for two epochs."""
        model = SegmentationModel(self.arch, self.encoder, in_channels=3, out_classes=1, **self.options)
        self.trainer = pl.Trainer(
            max_epochs=2, log_every_n_steps=1, accelerator="cpu", callbacks=callbacks, enable_progress_bar=False
        )
        self.trainer.fit(model, train_dataloaders=torch.utils.data.DataLoader(Discs(), batch_size=4, shuffle=True))
        return model

    def example(self, fitted: Any, seen: Any) -> Any:
        """Return one image."""
        return (Discs()[0]["image"][None],), {}

    def reload(self, fitted: Any, folder: Path) -> Any:
        """Through a checkpoint."""
        self.trainer.save_checkpoint(folder / "small.ckpt")
        return SegmentationModel.load_from_checkpoint(folder / "small.ckpt", weights_only=False)

    def predict(self, fitted: Any) -> Any:
        """Return the logits of one image."""
        with torch.inference_mode():
            return fitted.eval()(self.example(fitted, None)[0][0])


if __name__ == "__main__":
    cases = [
        Segmentation("Unet, ResNet-18", "unet", "resnet18", decoder_channels=(64, 32, 16, 16, 8)),
        Segmentation("FPN, MobileNetV2", "fpn", "mobilenet_v2"),
        Segmentation("DeepLabV3+, MobileNetV2", "deeplabv3plus", "mobilenet_v2"),
    ]
    run("segmentation-models-pytorch", version("segmentation-models-pytorch"), cases)
