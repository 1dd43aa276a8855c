"""What a model is fed with and judged by, without a Trainer: batches, losses, metrics."""
