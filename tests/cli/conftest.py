"""Which test covers a module that has none of its own name.

_backends: tests/cli/test_cli.py
_commands: tests/cli/test_cli.py
_fitting: tests/cli/test_fitting.py
_judging: tests/cli/test_fitting.py
_models: tests/cli/test_cli.py
_options: tests/cli/test_cli.py
main: tests/cli/test_cli.py
references: tests/cli/test_cli.py
"""
