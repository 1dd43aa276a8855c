"""Which test covers a module that has none of its own name.

activations: tests/criteria/test_watching.py
gradients: tests/criteria/test_watching.py
observations: tests/criteria/test_scores.py
weights: tests/criteria/test_scores.py
"""
