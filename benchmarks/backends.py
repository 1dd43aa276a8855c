"""What each backend makes of a network: calls left outside, speed, size, accuracy.

python -m benchmarks.backends                     # all of it, some twenty minutes on two cores
python -m benchmarks.backends vit coreml vulkan digits ethos
"""

import argparse
import copy
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.removal_speed import mobilenet, resnet
from lightning_prune import NOfM, OneShot, Recipe, prune
from lightning_prune.deploy import (
    XNNPACK,
    Backend,
    CoreML,
    EthosU,
    Linear8,
    Palette,
    Vulkan,
    benchmark,
    decompressed,
    export,
)
from lightning_prune.deploy.rewriting import Rewrite

IMAGE = torch.zeros(1, 3, 64, 64)
ROUNDS = 30


@dataclass(frozen=True)
class Unchanged(XNNPACK):
    """XNNPACK as ExecuTorch does it, without rewrites."""

    def rewrites(self) -> Sequence[Rewrite]:
        """Return none."""
        return ()

    def late_rewrites(self) -> Sequence[Rewrite]:
        """Return none."""
        return ()


class Attention(nn.Module):
    """One projection for query, key and value, and torch's attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape (N, tokens, width)."""
        n, tokens, width = x.shape
        parts = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts.unbind(0))
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    """Attention and a perceptron, each after a layer norm and around a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class Vit(nn.Module):
    """A vision transformer for images of 64×64: 65 tokens.

    Args:
        width: of a token.
        depth: number of blocks.
        make: returns a block of a width and a number of heads.
    """

    def __init__(self, width: int = 192, depth: int = 4, make: Callable[[int, int], nn.Module] = Block) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, 8, 8), nn.Parameter(torch.randn(1, 1, width) / 50)
        self.places = nn.Parameter(torch.randn(1, 65, width) / 50)
        self.blocks = nn.Sequential(*(make(width, width // 64) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def torch_layer(width: int, heads: int) -> nn.Module:
    """Return torch's own encoder layer."""
    return nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)


def vit(folder: Path) -> None:
    """Print calls outside the delegate, seconds of the export and latency, without and with the rewrites."""
    print(f"{'':>28}{'outside':>9}{'export s':>10}{'ms':>9}{'time':>8}")
    makers = {"attention by hand": Block, "torch.nn.Transformer…Layer": torch_layer}
    for name, make in makers.items():
        torch.manual_seed(0)
        model, rows = Vit(make=make).eval(), {}
        for backend in (Unchanged(), XNNPACK()):
            path, started = folder / f"{len(rows)}.pte", time.perf_counter()
            artifact = export(model, path, example_inputs=torch.randn(1, 3, 64, 64), backend=backend)
            rows[path] = (_outside(artifact.notes), time.perf_counter() - started)
        times = benchmark({str(path): path for path in rows}, IMAGE, rounds=ROUNDS)
        for path, label in zip(rows, (name, "rewritten"), strict=True):
            outside, seconds = rows[path]
            row = times[str(path)]
            print(f"{label:>28}{outside:>9}{seconds:>10.1f}{row.median_ms:>9.2f}{row.ratio:>8.2f}", flush=True)


def _outside(notes: Sequence[str]) -> int:
    found = (re.search(r"stay outside .*?, (\d+) in all:", note) for note in notes)
    return sum(int(match[1]) for match in found if match)


def pruned(model: nn.Module, sparsity: float) -> nn.Module:
    """Return a copy with that share of the smallest weights of each convolution and Linear at zero."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                magnitudes = part.weight.abs().flatten()
                threshold = magnitudes.kthvalue(max(1, round(sparsity * len(magnitudes)))).values
                part.weight.mul_(part.weight.abs() > threshold)
    return model


CORE_ML: dict[str, Backend] = {
    "zeros as numbers": CoreML(),
    "sparse": CoreML(sparse_weights=True),
    "sparse, 8-bit": CoreML(sparse_weights=True, weights=Linear8()),
    "sparse, 4-bit palettes": CoreML(sparse_weights=True, weights=Palette(bits=4)),
}


def coreml(folder: Path) -> None:
    """Print sizes of a ResNet-18-like network with 75 % zeros, and what was left of the weights."""
    torch.manual_seed(0)
    model, x = pruned(resnet(32), 0.75).eval(), torch.randn(1, 3, 64, 64)
    print(f"{'':>28}{'bytes':>12}{'of dense':>10}{'outputs differ by':>20}")
    dense = 0
    with torch.no_grad():
        expected = model(x)
        for number, (name, backend) in enumerate(CORE_ML.items()):
            artifact = export(model, folder / f"{number}.pte", example_inputs=x, backend=backend)
            dense = dense or artifact.size_bytes
            error = (decompressed(model, artifact.path, x)(x)[0] - expected).norm() / expected.norm()
            ratio = artifact.size_bytes / dense
            print(f"{name:>28}{artifact.size_bytes:>12,}{ratio:>10.3f}{float(error):>20.2%}", flush=True)


def digits(folder: Path) -> None:
    """Print the accuracy of a network with 75 % zeros, with the weights that each Core ML file holds."""
    import lightning as L
    from sklearn.model_selection import train_test_split
    from torch.utils.data import DataLoader, TensorDataset

    from examples.digits import ResidualCNN
    from examples.digits import digits as load
    from lightning_prune import Linear, PruningCallback, Recipe

    images, targets = load()
    split = train_test_split(images, targets, test_size=0.5, random_state=0, stratify=targets)
    L.seed_everything(0, verbose=False)
    model = ResidualCNN()
    recipe = Recipe(schedule=Linear(0.75, begin_step=0.2, end_step=0.6, frequency=10))
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=15, callbacks=[PruningCallback(recipe)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(split[0], split[2]), 64, shuffle=True))
    model.eval()

    def accuracy(run: Callable[[Tensor], Any]) -> float:
        with torch.no_grad():
            logits = run(split[1])
        return float(((logits if isinstance(logits, Tensor) else logits[0]).argmax(1) == split[3]).double().mean())

    print(f"{'':>28}{'bytes':>12}{'test accuracy':>15}\n{'eager':>28}{'':>12}{accuracy(model):>15.2%}")
    for number, (name, backend) in enumerate(CORE_ML.items()):
        artifact = export(model, folder / f"{number}.pte", example_inputs=split[1], backend=backend)
        right = accuracy(decompressed(model, artifact.path, split[1]))
        print(f"{name:>28}{artifact.size_bytes:>12,}{right:>15.2%}", flush=True)


def vulkan(folder: Path) -> None:
    """Print whether the GPU takes each network, and the size in both precisions."""
    networks = {"ResNet-18-like": resnet(16), "MobileNetV2-like": mobilenet(), "ViT-like": Vit(depth=2)}
    print(f"{'':>28}{'float32':>12}{'float16':>12}{'outside':>9}")
    for name, model in networks.items():
        made = [
            export(model.eval(), folder / "m.pte", example_inputs=torch.randn(1, 3, 64, 64), backend=Vulkan(half=half))
            for half in (False, True)
        ]
        sizes = "".join(f"{artifact.size_bytes:>12,}" for artifact in made)
        print(f"{name:>28}{sizes}{max(_outside(artifact.notes) for artifact in made):>9}", flush=True)


def ethos(folder: Path) -> None:
    """Print size and Arm's estimate of cycles for several sparsities, and of n:m zeros on Ethos-U85."""
    torch.manual_seed(0)
    dense, data = resnet(16).eval(), [torch.randn(8, 3, 64, 64)]
    print(f"{'zeros':>12}{'bytes':>12}")
    for sparsity in (0.0, 0.5, 0.75, 0.9):
        model = pruned(dense, sparsity) if sparsity else dense
        _print_estimate(f"{sparsity:.0%}", model, folder, EthosU(data, "ethos-u55-256"))
    perceptron = Perceptron().eval()
    for name, network, inputs in (("ResNet", dense, data), ("perceptron", perceptron, [torch.randn(8, 784)])):
        two_of_four = copy.deepcopy(network)
        prune(two_of_four, Recipe(schedule=OneShot(0.5), granularity=NOfM(2, 4)), inputs, repair=None, progress=False)
        variants = {
            "dense": network,
            "2:4": two_of_four,
            "50 %": pruned(network, 0.5),
            "95 %": pruned(network, 0.95),
        }
        for system, memory in ((None, None), ("Ethos_U85_SYS_Flash_High", "Shared_Sram")):
            print(f"\n{name} on Ethos-U85, {system or 'everything in SRAM'}")
            for label, model in variants.items():
                backend = EthosU(inputs, "ethos-u85-256", system=system, memory=memory)
                _print_estimate(label, model, folder, backend)


class Perceptron(nn.Module):
    """Three Linear layers over 784 numbers: weights that are read once for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        return self.layers(x)


def _print_estimate(label: str, model: nn.Module, folder: Path, backend: EthosU) -> None:
    artifact = export(model, folder / "m.pte", example_inputs=backend.calibration[0][:1], backend=backend)
    print(f"{label:>12}{artifact.size_bytes:>12,}  {artifact.notes[0]}", flush=True)


PARTS: dict[str, Callable[[Path], None]] = {
    "vit": vit,
    "coreml": coreml,
    "digits": digits,
    "vulkan": vulkan,
    "ethos": ethos,
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["vit", "coreml", "digits", "vulkan"])
    torch.set_num_threads(1)
    for part in parser.parse_args().parts:
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n{part}")
            PARTS[part](Path(folder))


if __name__ == "__main__":
    main()
