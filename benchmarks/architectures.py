"""Half of every channel group of every architecture in tests/zoo.py goes; the table goes to docs/architectures.md.

    python -m benchmarks.architectures [name ...]

With names only those are tried, and their channel groups are printed.
"""

import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "graph")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from test_zoo import EXCUSED  # noqa: E402
from zoo import ZOO, Architecture  # noqa: E402

from lightning_prune import Compaction, channel_groups, compact  # noqa: E402

HEAD = """# Architectures

Each network at a small random configuration, every parameter and statistic drawn anew, in float64: half of every
prunable channel group is removed, and the compact network is compared with the masked one on its inputs and on a
second random batch. *Error* is max|masked − compact| / max|masked|. A group that is *put back* keeps its width with the
planned channels at zero, because the code of the network holds a size that no attribute tells. Times are processor
seconds of one thread, the export included. Written by `python -m benchmarks.architectures`;
`tests/graph/test_zoo.py` holds every row to it.

| Architecture | Parameters | left | Share | Error | Groups | Put back | Graph (s) | In all (s) | Remark |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""


@dataclass(frozen=True)
class Row:
    """What compaction did to one architecture."""

    name: str
    before: int
    after: int
    error: float
    groups: int
    put_back: int
    graph_s: float
    all_s: float

    def __str__(self) -> str:
        remark = EXCUSED.get(self.name, (0.0, ""))[1]
        cells = (
            *(self.name, f"{self.before:,}", f"{self.after:,}", f"{self.after / self.before:.0%}", f"{self.error:.0e}"),
            *(self.groups, self.put_back, f"{self.graph_s:.1f}", f"{self.all_s:.1f}", remark),
        )
        return "| " + " | ".join(map(str, cells)) + " |"


def tried(architecture: Architecture, is_shown: bool) -> Row:
    """Remove half of every channel group."""
    model, args, kwargs = architecture.drawn()
    start = time.process_time()
    groups = channel_groups(model, args, kwargs)
    traced = time.process_time()
    keep = {group.name: range((group.size + 1) // 2) for group in groups if group.prunable and group.size > 1}
    report = compact(model, Compaction.from_keep(groups, keep), args or None, example_kwargs=kwargs)
    end = time.process_time()
    if is_shown:
        print(groups, *report.put_back.items(), sep="\n")
    sizes = report.parameters_before, report.parameters_after
    error, put_back = max(report.errors.values()), len(report.put_back)
    return Row(architecture.name, *sizes, error, len(keep), put_back, traced - start, end - start)


def main() -> None:
    """Write the table, or show the architectures that are named."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = sys.argv[1:]
    rows = []
    for architecture in ZOO:
        if not names or architecture.name in names:
            rows.append(tried(architecture, bool(names)))
            print(rows[-1], flush=True)
    if not names:
        share = sum(row.put_back for row in rows) / sum(row.groups for row in rows)
        foot = f"\n{len(rows)} architectures; {share:.1%} of their groups were put back.\n"
        (ROOT / "docs" / "architectures.md").write_text(HEAD + "\n".join(map(str, rows)) + "\n" + foot)


if __name__ == "__main__":
    main()
