"""Which test covers a module that has none of its own name.

_entries: tests/compaction/test_plan.py
_equivalence: tests/compaction/test_failures.py
_removal: tests/compaction/test_plan.py
_suspects: tests/compaction/test_trial.py
heads: tests/trained/test_rotate_heads.py
rotation: tests/trained/test_rotate.py
"""
