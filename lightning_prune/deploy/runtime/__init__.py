"""The ExecuTorch runtime, and the child process it runs in."""
