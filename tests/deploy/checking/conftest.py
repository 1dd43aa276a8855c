"""Which tests cover what has no test module of its own here.

cases: tests/deploy/checking/test_verification.py
comparison: tests/deploy/checking/test_verification.py
"""
