"""segmentation_models_pytorch: its binary segmentation example, a LightningModule around a Unet or an FPN."""
