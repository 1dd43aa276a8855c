"""What runs in the process of its own that takes .pte files: it may be brought down by one, its caller may not.

Nothing here imports the rest of lightning_prune, Lightning or ExecuTorch's export side, so that it starts quickly.
"""
