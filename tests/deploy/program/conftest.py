"""Which tests cover what has no test module of its own here.

constants: tests/deploy/program/test_methods.py
eager: tests/deploy/test_export.py
loaders: tests/deploy/checking/test_verification.py
signature: tests/deploy/checking/test_verification.py
"""
