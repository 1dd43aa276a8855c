"""Models, data and a call of the shell for the tests of its commands."""

from pathlib import Path

import pytest

from lightning_prune.cli import main

TESTS = Path(__file__).parent
MODEL = f"{TESTS / 'support.py'}:Net"
DATA = """
import torch
from torchmetrics.classification import MulticlassAccuracy
from lightning_prune.deploy import XNNPACK

def calibration():
    return [(torch.rand(2, 1, 6, 6), torch.arange(2)) for _ in range(3)]

def accuracy():
    return MulticlassAccuracy(4, average="micro")

def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

def share_right(model, batch):
    return float((model(batch[0]).argmax(1) == batch[1]).float().mean())

def many():
    torch.manual_seed(0)
    return [(torch.rand(16, 1, 6, 6), torch.randint(0, 4, (16,))) for _ in range(3)]

def failing():
    raise KeyError("nothing")

batches, number, own = calibration(), 3, XNNPACK()
"""


TAGGER = """
import torch
from torch import nn

class Tagger(nn.Module):
    example_input_array = torch.zeros(1, 4)

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))

tagger = Tagger().eval()
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Return the exit code, and what went to both outputs."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err
