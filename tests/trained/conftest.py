"""Which test covers a module that has none of its own name.

_search: tests/trained/test_search.py
_whole: tests/trained/test_search.py
heads: tests/trained/test_rotate_heads.py
pruned: tests/trained/test_prune.py
"""
