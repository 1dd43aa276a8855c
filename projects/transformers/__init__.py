"""transformers: classification in a LightningModule, as in Lightning's example of text transformers."""
