"""Which test covers a module that has none of its own name.

shards: tests/trainer/test_fsdp2.py
"""
