"""What a checkpoint says about pruning, and a model that takes the shape it has."""
