"""Which tests cover what has no test module of its own here.

turns: tests/deploy/test_benchmark.py
profiling: tests/deploy/test_benchmark.py
worker/xnnpack_graph: tests/deploy/test_inspect.py
worker/programs: tests/deploy/runtime/test_model.py
worker/serving: tests/deploy/runtime/test_child.py
"""
