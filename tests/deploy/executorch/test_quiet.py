import logging
import os
import subprocess
import sys
import warnings

import pytest

from lightning_prune.deploy.backends import XNNPACK
from lightning_prune.deploy.executorch.quiet import native_lines, quiet_import, quiet_lowering, quiet_native

EXPORT = """
import torch
from torch import nn
from lightning_prune.deploy import benchmark, export
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
export(model, "m.pte", example_inputs=torch.zeros(1, 1, 4, 4))
benchmark({"m": "m.pte"}, torch.zeros(1, 1, 4, 4), rounds=1)
import logging
assert logging.getLogger().handlers == []
"""


def test_known_lines_go_and_others_stay(capfd: pytest.CaptureFixture[str]):
    with quiet_native():
        os.write(2, b"[cpuinfo_utils.cpp:71] Reading file\n[threadpool.cpp:66] Resetting threadpool to 1 threads.\n")
        os.write(2, b"[method.cpp:1240] Error resizing tensor at input 0\n")
        sys.stderr.write("from Python\n")
    assert capfd.readouterr().err == "from Python\n[method.cpp:1240] Error resizing tensor at input 0\n"


def test_lines_are_collected_when_the_block_fails(capfd: pytest.CaptureFixture[str]):
    collected = []

    def failing() -> None:
        with native_lines() as lines:
            collected.append(lines)
            os.write(2, b"why\n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert collected == [["why"]]
    assert capfd.readouterr().err == ""


def test_warnings_of_others_stay():
    with quiet_lowering():
        warnings.warn("read_binary is deprecated. Use files() instead.", DeprecationWarning, stacklevel=1)
        with pytest.raises(DeprecationWarning, match="yours"):
            warnings.warn("yours", DeprecationWarning, stacklevel=1)


def test_log_lines_of_others_stay(caplog: pytest.LogCaptureFixture):
    with quiet_import():
        logging.getLogger("torchao").warning("Failed to load /a/_C.abi3.so: Could not load this library: /a")
        logging.getLogger("torchao").warning("something new")
    assert caplog.messages == ["something new"]


def test_root_logger_keeps_its_handlers():
    before = list(logging.getLogger().handlers)
    with quiet_lowering():
        logging.getLogger().addHandler(logging.NullHandler())
    assert logging.getLogger().handlers == before


def test_notes_about_zeros():
    assert XNNPACK().notes(0.29) == ()
    assert "only the zipped download shrinks" in XNNPACK().notes(0.3)[0]
    assert "Channel()" in XNNPACK().notes(0.3)[0]


@pytest.mark.slow
def test_an_export_with_warnings_as_errors_says_nothing(tmp_path: os.PathLike[str]):
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    command = [sys.executable, "-W", "error::DeprecationWarning", "-W", "error::FutureWarning", "-c", EXPORT]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
