"""What Arm's compiler Vela estimates for the parts of a program."""

import csv
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """Vela's estimate for one part of a program that runs on the processor.

    Args:
        cycles: in all.
        seconds: of one run.
        accelerator: the configuration that it is for.
    """

    cycles: float
    seconds: float
    accelerator: str


class Report:
    """The parts of one lowering, each in a folder of its own, which go when they are read or when this goes."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ethos-u-"))
        self._clean = weakref.finalize(self, shutil.rmtree, str(self._folder), ignore_errors=True)
        self._count = 0

    def next_folder(self) -> Path:
        """Return a new folder for the compiler's files of a part."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        return folder

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts that Vela compiled, in order; to be asked after the lowering."""
        tables = sorted(
            self._folder.rglob("*summary*.csv"), key=lambda path: int(path.relative_to(self._folder).parts[0])
        )
        found = tuple(_part(path) for path in tables)
        self._clean()
        return found

    def told(self, sparsity: float) -> str:
        """Return the estimate in words.

        Args:
            sparsity: share of the weights that is zero.
        """
        if not self.parts:
            return "No operator runs on the Ethos-U."
        cycles, seconds = sum(part.cycles for part in self.parts), sum(part.seconds for part in self.parts)
        of = "" if len(self.parts) == 1 else f" for the {len(self.parts)} parts that run on it"
        return (
            f"Vela estimates {cycles:,.0f} cycles, {1000 * seconds:.3f} ms on {self.parts[0].accelerator}{of}; it codes"
            f" the weights ({sparsity:.0%} of them zero) so that zeros take next to no room."
        )


def _part(path: Path) -> Part:
    with path.open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    return Part(float(row["cycles_total"]), float(row["inference_time"]), row["accelerator_configuration"])
