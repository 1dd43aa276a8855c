"""Which test covers a module that has none of its own name.

_control: tests/study/test_compare.py
_programs: tests/study/test_advise.py
_removal: tests/study/test_significance.py
comparison: tests/study/test_compare.py
curve: tests/study/test_sensitivity.py
deletion: tests/study/test_significance.py
runners: tests/study/test_compare.py
training: tests/study/test_compare.py
"""
