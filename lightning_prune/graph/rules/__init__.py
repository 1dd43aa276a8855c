"""One rule per family of ATen operators; the table is in :mod:`lightning_prune.graph.rules.table`."""
