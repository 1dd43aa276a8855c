"""Which tests cover what has no test module of its own here.

attention: tests/deploy/rewriting/test_rewriting.py
editing: tests/deploy/rewriting/test_rewriting.py
functional: tests/deploy/rewriting/test_rewriting.py
infinities: tests/deploy/rewriting/test_rewriting.py
reductions: tests/deploy/rewriting/test_rewriting.py
refusing: tests/deploy/rewriting/test_rewriting.py
sets: tests/deploy/rewriting/test_rewriting.py
shapes: tests/deploy/rewriting/test_rewriting.py
"""
