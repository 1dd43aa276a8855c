"""Which tests cover what has no test module of its own here.

quantizers: tests/deploy/program/test_methods.py
"""
