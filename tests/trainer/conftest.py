"""Which test covers a module that has none of its own name.

_averages: tests/trainer/test_averages.py
_course: tests/trainer/test_fit.py
_files: tests/trainer/test_kill.py
_lines: tests/trainer/test_lines.py
_networks: tests/trainer/test_networks.py
_preconditions: tests/trainer/test_callback_errors.py
_resume: tests/trainer/test_resume.py
internals: tests/trainer/test_lightning_features.py
strategy: tests/trainer/test_shrink_while_training.py
"""
