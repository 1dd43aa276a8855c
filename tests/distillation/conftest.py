"""Which test covers a module that has none of its own name.

lessons: tests/distillation/test_models.py
losses: tests/distillation/test_distillation.py
pairs: tests/distillation/test_distillation.py
teacher: tests/distillation/test_models.py
"""
