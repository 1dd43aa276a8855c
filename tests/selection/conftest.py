"""Which test covers a module that has none of its own name.

channels: tests/selection/test_units.py
counts: tests/selection/test_units.py
elements: tests/selection/test_units.py
"""
