"""Is what a program takes of the memory what was computed?

Each network, and a copy with half of the channels in every group, is exported for XNNPACK in float32 and run on one
thread in a process of its own, after a small program whose code and tables are there then. *Network* is what
`need=Memory(…)` computes from its graph, *file* what `inspect()` reads off the .pte, *measured* by how much the private
memory of the process grows while it loads and runs. *Planned* is what ExecuTorch sets aside, *live* the largest sum of
tensors that live at one time. The last three columns are ratios to what was measured. While a program loads, its
weights lie in the memory a second time, those of the mapped file included: *loading* is weights twice to the largest
growth by then. Linux alone.

    python -m benchmarks.memory
    python -m benchmarks.memory --networks images unet
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.latency_cells import ViT
from benchmarks.removal_speed import half, mobilenet, narrowed, resnet
from lightning_prune import Channel, Targets
from lightning_prune.deploy import export, inspect
from lightning_prune.deploy.executorch import native
from lightning_prune.graph.activations import Activations
from lightning_prune.graph.lowered import activations
from lightning_prune.run.binding import units_of
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.budget import Budget
from lightning_prune.selection.costs import ParameterCost
from lightning_prune.selection.memory import MemoryCost

ROOT = Path(__file__).parents[1]


class UNet(nn.Module):
    """Half the size and back, past which the whole size goes."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)
        self.deep, self.up = nn.Conv2d(32, 32, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear")
        self.joined, self.out = nn.Conv2d(48, 16, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return one number for each place."""
        whole = F.relu(self.whole(image))
        deep = F.relu(self.deep(F.relu(self.down(whole))))
        return self.out(F.relu(self.joined(torch.cat([self.up(deep), whole], 1))))


class Squeezed(nn.Module):
    """A MobileNetV3-like block: depthwise, hard swishes, and a factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 4 * width
        self.expand = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 5, 2, 2, groups=wide), nn.BatchNorm2d(wide), nn.Hardswish()
        )
        self.less, self.more = nn.Conv2d(wide, width, 1), nn.Conv2d(width, wide, 1)
        self.out = nn.Conv2d(wide, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return half of the image size."""
        x = self.depthwise(self.expand(x))
        return self.out(x * F.hardsigmoid(self.more(F.relu(self.less(F.adaptive_avg_pool2d(x, 1))))))


class Apart(nn.Module):
    """Two parts for XNNPACK, and between them what it has no kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, width, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(width, 3, 3, padding=1))
            for width in (32, 16)
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """Return another image."""
        return self.second(torch.cumsum(self.first(image), 1))


def perceptron() -> nn.Module:
    """Return large weights and hardly an activation."""
    layers = [nn.Linear(256, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)]
    return nn.Sequential(*layers)


def images() -> nn.Module:
    """Return large activations and hardly a weight."""
    layers, made_of = list[nn.Module](), 3
    for _ in range(3):
        layers += [nn.Conv2d(made_of, 32, 3, padding=1), nn.ReLU()]
        made_of = 32
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def squeezed() -> nn.Module:
    """Return a small MobileNetV3."""
    stem = [nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish()]
    return nn.Sequential(*stem, Squeezed(16), Squeezed(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (1, 256)),
    "images": (images, (1, 3, 224, 224)),
    "resnet": (resnet, (1, 3, 224, 224)),
    "mobilenet": (mobilenet, (1, 3, 224, 224)),
    "squeezed": (squeezed, (1, 3, 128, 128)),
    "unet": (UNet, (1, 3, 128, 128)),
    "vit": (ViT, (1, 3, 96, 96)),
    "apart": (Apart, (1, 3, 224, 224)),
}


def computed(model: nn.Module, x: Tensor) -> float:
    """Return the bytes that ``need=Memory(…)`` computes for a network as it is.

    Raises:
        ValueError: it has an operator of which this is not known.
    """
    units = units_of(Channel(), Targets(), model, x)
    assert isinstance(units, ChannelUnits)
    weights = Budget(4.0 * sum(parameter.numel() for parameter in model.parameters()), {})
    return MemoryCost(activations(model, x), ParameterCost(weights, units), units).total


def measured(path: Path, x: Tensor) -> tuple[int, int]:
    """Return by how many bytes a process of its own grows: its private memory while a file runs, and all of it at most.

    Args:
        path: of the .pte.
        x: what it takes.
    """
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.pte"
        layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
        export(nn.Sequential(*layers).eval(), small, example_inputs=torch.zeros(1, 3, 8, 8))
        command = [sys.executable, "-m", "benchmarks.memory", "--grow", str(small), str(path.resolve())]
        told = subprocess.run(
            [*command, ",".join(map(str, x.shape))], cwd=ROOT, check=True, capture_output=True, text=True
        )
    running, loading = json.loads(told.stdout.splitlines()[-1])
    return running, loading


def grow(small: str, path: str, shape: str) -> None:
    """Run a file after another one, and print by how many bytes this process grew."""
    native.bindings()
    native.set_threads(1)
    first = native.load(small, "forward", None, clone=False)
    first.run([torch.zeros(1, 3, 8, 8)])
    x = torch.ones([int(size) for size in shape.split(",")])
    ctypes.CDLL(None).malloc_trim(0)  # what lies free would hide that it grows
    # from here on the largest resident memory counts, see proc(5)
    Path("/proc/self/clear_refs").write_text("5")
    private, resident = kilobytes("smaps_rollup", "Anonymous"), kilobytes("status", "VmHWM")
    program = native.load(path, "forward", None, clone=False)
    loading = kilobytes("status", "VmHWM") - resident
    for _ in range(3):
        program.run([x])
    print([1024 * (kilobytes("smaps_rollup", "Anonymous") - private), 1024 * loading])


def kilobytes(file: str, what: str) -> int:
    """Return what the system tells of this process."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def compared(name: str, model: nn.Module, x: Tensor) -> Iterator[str]:
    """Yield a line for a network."""
    with tempfile.TemporaryDirectory() as folder:
        path = export(model, Path(folder) / "model.pte", example_inputs=x).path
        forward, (running, loading) = inspect(path)["forward"], measured(path, x)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    try:
        told, live = computed(model, x), largest_sum(activations(model, x))
        network, ratio, most = f"{told:,.0f}", f"{told / running:.3f}", f"{live:,.0f}"
    except ValueError:
        network = ratio = most = "-"
    file = forward.memory_bytes or 0
    yield (
        f"{name:22}{forward.planned_bytes:>10,}{weights:>12,}{most:>12}{network:>13}{file:>13,}{running:>13,}"
        f"{ratio:>9}{file / running:>8.3f}{2 * weights / loading:>10.3f}"
    )


def largest_sum(held: Activations) -> float:
    """Return the bytes of the tensors inside that live at one time, where they are most."""
    sizes = {x: 4 * sum(own.values()) for x, own in held.elements.items() if x not in held.borders}
    first, last = dict[int, int](), dict[int, int]()
    for number, step in enumerate(held.steps):
        for tensor in (*step.reads, step.makes):
            first.setdefault(tensor, number)
            last[tensor] = number
    moments = range(len(held.steps))
    return max(sum(size for x, size in sizes.items() if first[x] <= moment <= last[x]) for moment in moments)


def main() -> None:
    """Compare each network, dense and halved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--grow", nargs=3, metavar="WHAT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.grow:
        grow(*args.grow)
        return
    print(
        f"{'bytes':22}{'planned':>10}{'weights':>12}{'live':>12}{'network':>13}{'file':>13}{'measured':>13}"
        f"{'network':>9}{'file':>8}{'loading':>10}"
    )
    for name in args.networks:
        torch.manual_seed(0)
        make, shape = NETWORKS[name]
        model, x = make().eval(), torch.randn(shape)
        for which, network in ((name, model), (f"{name}, half", narrowed(model, half, x))):
            print("\n".join(compared(which, network, x)), flush=True)


if __name__ == "__main__":
    main()
