"""Which tests cover what has no test module of its own here.

native: tests/deploy/runtime/test_model.py
pte_file: tests/deploy/runtime/worker/test_doubling.py
origins: tests/deploy/test_refusals.py
"""
