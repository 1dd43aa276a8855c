"""Which test covers a module that has none of its own name.

binding: tests/run/test_pruner_failures.py
removal: tests/trainer/test_shrink_while_training.py
"""
