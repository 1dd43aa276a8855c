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


REPEATING = """
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from lightning_prune import deploy

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():  # a quarter of the units, four times
        for layer, axis in ((net[0].weight, 0), (net[0].bias, 0), (net[2].weight, 1)):
            layer.copy_(torch.cat([layer.narrow(axis, 0, 8)] * 4, axis))
    return net.eval()

def data():
    torch.manual_seed(1)
    inputs = torch.randn(128, 8)
    with torch.no_grad():
        labels = make()(inputs).argmax(1)
    return [(inputs[:64], labels[:64]), (inputs[64:], labels[64:])]

def others():  # half of whose labels are wrong
    (inputs, labels), _ = data()
    return [(inputs, (labels + torch.arange(64) % 2) % 4)]

def accuracy():
    return MulticlassAccuracy(4, average="micro")

def share_wrong(model, batch):
    return float((model(batch[0]).argmax(1) != batch[1]).float().mean())

def nothing(model, batch):
    return float("nan")

def unlabelled():
    return [inputs for inputs, _ in data()]

portable = deploy.Portable()
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Return the exit code, and what went to both outputs."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def fit_to(capsys: pytest.CaptureFixture[str], net: Path, *options: object) -> tuple[int, str, str]:
    """Return the same of ``fit-to`` on a file that holds :data:`REPEATING`; options call it net.py."""
    named = ("--model", f"{net}:make", "--data", f"{net}:data")
    return run(capsys, "fit-to", *named, *(str(option).replace("net.py", str(net)) for option in options))
