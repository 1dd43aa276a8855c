"""Which test covers a module that has none of its own name.

training: tests/optimizer/test_policies.py
"""
