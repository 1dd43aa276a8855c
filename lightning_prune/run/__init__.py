"""One pruning run on one model, without Lightning."""
