"""Needs on networks of timm, which nobody here wrote: half of the time, accepted by measurement.

Weights are random, and norms have factors between 0.5 and 1.5 as after a training: some of timm's begin with zeros, so
that whole branches count for nothing. The widths are chosen by Fisher's scores on random images. *Table* is processor
time of its measurement; *asked / measured* what the first network was predicted to take over what it takes; *of the
need* the measured time of the one that is kept over what was wished, in the session that accepted it. What is refused
is printed with its reason.

It runs in the environment of a project that has timm:

    make projects/.envs/segmentation_models_pytorch/.ready
    projects/.envs/segmentation_models_pytorch/bin/python -m benchmarks.outside_needs
    projects/.envs/segmentation_models_pytorch/bin/python -m benchmarks.outside_needs --networks resnet18 --share 0.7
"""

import argparse
import copy

from projects import LIBRARY  # first: torchmetrics imports torchvision, which may lack its operators

# isort: split
import torch
from torch import Tensor, nn

from benchmarks.latency_cells import spent
from benchmarks.tasks import quiet
from lightning_prune import Channel, Fisher, Latency, OneShot, Recipe, prune
from lightning_prune.deploy import accepted, latency_table
from lightning_prune.errors import PruningError

CLASSES = 100
NETWORKS = {
    "resnet18": 64,
    "repvgg_a0": 64,
    "mobilenetv3_small_100": 128,
    "efficientnet_lite0": 96,
    "mobilenetv4_conv_small": 96,
    "ghostnet_100": 96,
    "vit_tiny_patch16_224": 112,
    "edgenext_xx_small": 96,
    "convnext_atto": 64,
}
"""Name in timm -> height and width of its images."""


def made(name: str, size: int) -> nn.Module:
    """Return a network of timm, with factors of norms as training leaves them."""
    import timm  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    options = {"img_size": size} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=CLASSES, **options).eval()
    for path, parameter in model.named_parameters():
        holder = model.get_submodule(path.rpartition(".")[0])
        is_norm = isinstance(holder, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm) and path.endswith("weight")
        if is_norm or path.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def row(name: str, share: float) -> str:
    """Return what the need costs and comes to, in a line."""
    size = NETWORKS[name]
    dense, image = made(name, size), torch.zeros(1, 3, size, size)
    data = [(torch.randn(16, 3, size, size), torch.randint(0, CLASSES, (16,))) for _ in range(2)]
    before = spent()
    table = latency_table(dense, image, progress=False)
    seconds, whole = spent() - before, table.networks[0]
    milliseconds = whole.anchors[0].milliseconds

    def make(need: Latency) -> nn.Module:
        model = copy.deepcopy(dense)
        recipe = Recipe(granularity=Channel(), criterion=Fisher(), need=need, schedule=OneShot())
        prune(model, recipe, data, loss=loss, example_inputs=image, progress=False)
        return model.eval()

    told = f"{name:23} {size:4} {milliseconds:6.3f} {len(whole.cells):5} {seconds:6.1f}"
    try:
        done = accepted(make, Latency(share * milliseconds, table), dense, image)
    except (PruningError, ValueError) as error:
        return f"{told}  refused: {error}"
    first, kept = done.rounds[0], done.rounds[done.chosen]
    ratio = first.asked / first.milliseconds
    return f"{told} {ratio:17.3f} {len(done.rounds):6} {kept.milliseconds / done.need.ms:12.3f}"


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--share", type=float, default=0.5, help="of the dense time")
    args = parser.parse_args()
    quiet()
    held = "" if LIBRARY is None else "; torchvision without its compiled operators"
    print(f"{args.share:g} of the dense time{held}")
    print("network                 size     ms cells  table  asked / measured  tries  of the need")
    for name in args.networks:
        print(row(name, args.share), flush=True)


if __name__ == "__main__":
    main()
