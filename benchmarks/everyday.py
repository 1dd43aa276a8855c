"""Twelve everyday networks, dense and pruned, in two spellings, on every backend that a phone has.

Each is written with layers of torch.nn and again with functions of torch.nn.functional. Half of every channel group
goes; both go through `export` to XNNPACK in float and in 8 bits, the pruned one to Core ML and Vulkan in float, each
verified on data that calibration has not seen. The weights are random, the statistics of the batch norms are those of
the data. The rows go to docs/everyday.md.

    python -m benchmarks.everyday                    # all, some twenty minutes on one core
    python -m benchmarks.everyday YOLO LSTM          # these rows anew
"""

import argparse
import copy
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.everyday_images import SPELLINGS, ConvNeXt, Mobile, ResNet, Spelled, Ssd, UNet, Yolo
from benchmarks.everyday_sequences import Bert, Keyword, Lstm, Tcn, Vit
from lightning_prune import Compaction, PruningError, channel_groups, compact
from lightning_prune.deploy import XNNPACK, Artifact, Backend, CoreML, Int8, Vulkan, export

PAGE = Path(__file__).parent.parent / "docs" / "everyday.md"
MARKS = "<!-- begin of the table -->\n", "<!-- end of the table -->\n"
NETWORKS: dict[str, Callable[[Spelled], nn.Module]] = {
    "ResNet": ResNet,
    "MobileNetV3": lambda s: Mobile(s, "hardswish", "hardsigmoid"),
    "EfficientNet": lambda s: Mobile(s, "silu", "sigmoid"),
    "ConvNeXt": ConvNeXt,
    "U-Net": UNet,
    "YOLO": Yolo,
    "SSD": Ssd,
    "LSTM": Lstm,
    "TCN": Tcn,
    "ViT": Vit,
    "BERT": Bert,
    "keyword CNN": Keyword,
}
FAILS = "**fails**"
Inputs = tuple[Tensor, ...]


def data(name: str, count: int, seed: int) -> Inputs:
    """Return a batch: smooth images, waves, spectrograms or padded tokens."""
    draw = torch.Generator().manual_seed(seed)
    if name == "BERT":
        lengths = torch.randint(4, 17, (count, 1), generator=draw)
        mask = (torch.arange(16) < lengths).long()
        return torch.randint(1, 200, (count, 16), generator=draw) * mask, mask
    if name in ("LSTM", "TCN"):
        phase, speed = torch.rand(2, count, 8, 1, generator=draw) * 6
        waves = torch.sin(phase + speed * torch.linspace(0, 6, 32)) + 0.1 * torch.randn(count, 8, 32, generator=draw)
        return (waves.transpose(1, 2).contiguous() if name == "LSTM" else waves,)
    shape = (1, 49, 40) if name == "keyword CNN" else (3, 64, 64)
    coarse = torch.randn(count, shape[0], 6, 6, generator=draw)
    smooth = nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic")
    return (smooth + 0.1 * torch.randn(count, *shape, generator=draw),)


def made(name: str, spelling: str) -> nn.Module:
    """Return a network whose norms know the data."""
    torch.manual_seed(0)
    model = NETWORKS[name](Spelled(spelling)).train()
    with torch.no_grad():
        for seed in range(40):
            model(*data(name, 16, 100 + seed))
    return model.eval()


def halved(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Return a copy without half of every channel group."""
    small = copy.deepcopy(model)
    groups = channel_groups(small, inputs)
    keep = {group.name: range((group.size + 1) // 2) for group in groups if group.prunable and group.size > 1}
    compact(small, Compaction.from_keep(groups, keep), inputs)
    return small


@dataclass
class Row:
    """What became of one network in one spelling; ``cells`` are those of the table, ``failures`` lines below it."""

    name: str
    spelling: str
    cells: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "| " + " | ".join([self.name, f"`{self.spelling}.`", *self.cells]) + " |"


HEADS = ("float, dense", "float, pruned", "int8, dense", "int8, pruned", "Core ML, pruned", "Vulkan, pruned")
HEAD = "| " + " | ".join(["Network", "Spelling", "Parameters", *HEADS]) + " |\n| --- | --- " + 7 * "| ---: " + "|"
ON_XNNPACK = 4
"""How many of them are XNNPACK's."""


def tried(name: str, spelling: str, folder: Path) -> Row:
    """Export one network every way."""
    model = made(name, spelling)
    example = tuple(x[:1] for x in data(name, 1, 0))
    networks = {"dense": model, "pruned": halved(model, example)}
    counts = [sum(p.numel() for p in network.parameters()) for network in networks.values()]
    row = Row(name, spelling, [" → ".join(f"{count:,}" for count in counts)])
    backends: dict[str, Backend] = {
        "float": XNNPACK(),
        "int8": XNNPACK(quantization=Int8([data(name, 64, 1)])),
        "Core ML": CoreML(),
        "Vulkan": Vulkan(),
    }
    for head in HEADS:
        way, kind = head.split(", ")
        started = time.perf_counter()
        try:
            artifact = export(
                networks[kind],
                folder / "m.pte",
                example_inputs=example,
                backend=backends[way],
                verify_on=[data(name, 16, 2)],
            )
            row.cells.append(told(artifact))
        except (PruningError, ValueError) as error:
            row.cells.append(FAILS)
            reason = re.sub(r"/[^ ']*/", "", str(error))  # where this machine keeps its files is nobody's business
            row.failures.append(f"- {name}, `{spelling}.`, {head}: {reason}")
        seconds = time.perf_counter() - started
        sys.stderr.write(f"{name:>13} {spelling:>3} {head:>16} {row.cells[-1]:>16} {seconds:5.1f} s\n")
    return row


def told(artifact: Artifact) -> str:
    """Return the error in float or the ratio in 8 bits, and how many calls stay outside the backend."""
    is_rounded = artifact.verification.bounds.min_sqnr is not None
    error = f"{artifact.sqnr_db:.0f} dB" if is_rounded else f"{artifact.max_abs_error:.0e}"
    matches = [re.search(r"stay outside .*?, (\d+) in all:", note) for note in artifact.notes]
    outside = sum(int(match[1]) for match in matches if match)
    return error + (f" ({outside})" if outside else "")


def kept(page: str) -> dict[tuple[str, str], Row]:
    """Return the rows of a page."""
    rows = {}
    for name, spelling, cells in re.findall(r"^\| ([^|]+) \| `(\w+)\.` \| (.*) \|$", page, re.MULTILINE):
        failures = [line for line in page.splitlines() if line.startswith(f"- {name}, `{spelling}.`")]
        rows[name, spelling] = Row(name, spelling, cells.split(" | "), failures)
    return rows


def table(rows: dict[tuple[str, str], Row]) -> str:
    """Return the table, how many files were written, and why the others were not."""
    ordered = [rows[name, s] for name in NETWORKS for s in SPELLINGS if (name, s) in rows]
    lines, ends = [HEAD, *map(str, ordered), ""], 1 + ON_XNNPACK
    asked = len(NETWORKS) * len(SPELLINGS)
    for what, part in (("XNNPACK", slice(1, ends)), ("Core ML and Vulkan", slice(ends, 1 + len(HEADS)))):
        cells = [cell for row in ordered for cell in row.cells[part]]
        count, failed = asked * (part.stop - part.start), cells.count(FAILS)
        missing = count - len(cells)
        lines.append(
            f"{what}: {len(cells) - failed} of {count} files verified, {failed} failed, {missing} not measured."
        )
    pairs = [[rows[name, s] for s in SPELLINGS if (name, s) in rows] for name in NETWORKS]
    whole = [pair for pair in pairs if len(pair) == len(SPELLINGS)]
    held = sum(all(row.cells[at] != FAILS for row in pair) for pair in whole for at in range(1, ends))
    ways = f"{len(NETWORKS)} networks × dense or pruned × float or 8 bits"
    lines.append(f"\nOf {len(NETWORKS) * ON_XNNPACK} ways on XNNPACK ({ways}), {held} are verified in both spellings.")
    failures = [failure for row in ordered for failure in row.failures]
    return "\n".join([*lines, *(["", *failures] if failures else [])])


def main() -> None:
    """Try the networks that are named, or all of them, and write their rows into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[], metavar="name", help=", ".join(NETWORKS))
    names: Any = parser.parse_args().names
    if unknown := set(names) - NETWORKS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(NETWORKS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for name in names or NETWORKS:
            for spelling in SPELLINGS:
                row = tried(name, spelling, Path(folder))
                before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
                old, after = rest.split(MARKS[1])
                rows = kept(old) | {(name, spelling): row}
                PAGE.write_text(f"{before}{MARKS[0]}\n{table(rows)}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
