"""Which test covers a module that has none of its own name.

context: tests/optimizer/test_policies.py
"""
