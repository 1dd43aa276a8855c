"""Which test covers a module that has none of its own name.

_kernels: tests/graph/test_kernels.py
_held: tests/graph/test_sizes.py
_removed_value: tests/graph/test_rules.py
_scales: tests/graph/test_scales.py
_sizes: tests/graph/test_sizes.py
_slots: tests/trained/test_rotate_heads.py
_units: tests/graph/test_axes.py
_vanishing: tests/graph/test_scales.py
flow: tests/graph/test_networks.py
heads: tests/trained/test_rotate_heads.py
stream: tests/trained/test_rotate.py
trace: tests/graph/test_groups.py
activations: tests/graph/test_lowered.py
rules/contraction: tests/graph/test_rules.py
rules/einsum: tests/graph/test_rules.py
rules/elementwise: tests/graph/test_rules.py
rules/families: tests/graph/test_rules.py
rules/layout: tests/graph/test_rules.py
rules/normalisation: tests/graph/test_inexact.py
rules/parts: tests/graph/test_rules.py
rules/recurrent: tests/graph/test_recurrent.py
rules/reshape: tests/graph/test_axes.py
rules/table: tests/graph/test_table.py
rules/writing: tests/model/test_state.py
"""
