"""Which test covers a module that has none of its own name.

_shapes: tests/checkpoints/test_adopting.py
"""
