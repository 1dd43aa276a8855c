"""Which tests cover what has no test module of its own here.

base: tests/deploy/backends/test_backends.py
xnnpack: tests/deploy/backends/test_backends.py
portable: tests/deploy/backends/test_backends.py
partitioned: tests/deploy/backends/test_backends.py
vulkan: tests/deploy/backends/test_backends.py
coreml_weights: tests/deploy/backends/test_coreml.py
ethos_u_compiler: tests/deploy/backends/test_ethos_u.py
"""
