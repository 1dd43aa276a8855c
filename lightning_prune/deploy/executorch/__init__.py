"""ExecuTorch, torchao and coremltools from inside, each use with its reason."""
