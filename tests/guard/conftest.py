"""Which test covers a module that has none of its own name.

watch: tests/guard/test_guard.py
"""
