"""Which test covers a module that has none of its own name.

head: tests/classes/test_classes.py
"""
