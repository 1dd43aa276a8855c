"""Which test covers a module that has none of its own name.

files: tests/trainer/test_kill.py
internals: tests/trainer/test_lightning_features.py
preconditions: tests/trainer/test_callback_errors.py
strategy: tests/trainer/test_shrink_while_training.py
"""
