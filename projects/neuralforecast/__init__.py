"""neuralforecast: models that are LightningModules and make their own Trainer."""
