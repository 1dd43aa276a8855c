"""Which test covers a module that has none of its own name.

_backends: tests/cli/test_cli.py
_commands: tests/cli/test_cli.py
_fitting: tests/cli/test_fitting.py
_judging: tests/cli/test_judging.py
_models: tests/cli/test_cli.py
_options: tests/cli/test_cli.py
main: tests/cli/test_cli.py
references: tests/cli/test_cli.py
"""

from pathlib import Path

import pytest
import torch
from cli_cases import DATA, REPEATING
from support import Net, loader, trainer

from lightning_prune import Channel, OneShot, PruningCallback, Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "data.py").write_text(DATA)
    (folder / "broken.py").write_text("x = 1\ny = nothing\n")
    recipe = Recipe(granularity=Channel(), schedule=OneShot(0.5, begin_step=2))
    fit = trainer(folder, PruningCallback(recipe), max_epochs=1)
    torch.manual_seed(0)
    fit.fit(Net(), loader())
    fit.save_checkpoint(folder / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fitting") / "net.py"
    file.write_text(REPEATING)
    return file
