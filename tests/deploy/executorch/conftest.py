"""Which tests cover what has no test module of its own here.

lowering: tests/deploy/test_export.py
_unchanged: tests/deploy/executorch/test_quick.py
native: tests/deploy/runtime/test_model.py
pte_file: tests/deploy/runtime/worker/test_doubling.py
installation: tests/deploy/test_export.py
lowering: tests/deploy/test_export.py
origins: tests/deploy/test_refusals.py
arm: tests/deploy/backends/test_ethos_u.py
coreml: tests/deploy/backends/test_coreml.py
torchao: tests/deploy/quantization/test_quantization.py
"""
