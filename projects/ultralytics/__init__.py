"""ultralytics: the modules of YOLOv8 in a LightningModule; ultralytics brings a trainer of its own."""
