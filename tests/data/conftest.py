"""Which test covers a module that has none of its own name.

losses: tests/study/test_significance.py
metrics: tests/study/test_sensitivity.py
passes: tests/study/test_significance.py
"""
