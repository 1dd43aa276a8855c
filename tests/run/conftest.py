"""Which test covers a module that has none of its own name.

binding: tests/run/test_pruner_failures.py
progress: tests/run/test_pruner_channels.py
removal: tests/trainer/test_shrink_while_training.py
"""
