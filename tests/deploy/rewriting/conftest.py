"""Which tests cover what has no test module of its own here.

editing: tests/deploy/rewriting/test_rewriting.py
refusing: tests/deploy/rewriting/test_rewriting.py
sets: tests/deploy/rewriting/test_rewriting.py
"""
