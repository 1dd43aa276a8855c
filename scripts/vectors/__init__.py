"""What scripts/make_vectors.py writes, by subject."""
