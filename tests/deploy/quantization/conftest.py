"""Which tests cover what has no test module of its own here.

annotation: tests/deploy/quantization/test_quantization.py
base: tests/deploy/quantization/test_quantization.py
calibrated: tests/deploy/quantization/test_quantization.py
choosing: tests/deploy/quantization/test_quantization.py
graphs: tests/deploy/quantization/test_quantization.py
int8: tests/deploy/quantization/test_quantization.py
layers: tests/deploy/quantization/test_quantization.py
noise: tests/deploy/quantization/test_quantization.py
quantizers: tests/deploy/program/test_methods.py
"""
