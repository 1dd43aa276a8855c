"""What is measured of a network, and how what a call takes by itself is taken off."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from deploy_models import Wide
from torch import Tensor, nn

from lightning_prune import Channel
from lightning_prune.deploy import XNNPACK, Int8, LatencyTable
from lightning_prune.deploy.designs import (
    BORDER,
    Measured,
    Program,
    border_of,
    border_program,
    border_sizes,
    cell_program,
    designed,
    with_points,
)
from lightning_prune.deploy.executorch.lowering import graph_of
from lightning_prune.deploy.program.eager import EagerModel
from lightning_prune.selection.cells import Kernel

BORDERS = border_of([64], [[0.004] * 10])


def test_what_a_call_takes_is_taken_off():
    sizes = [64, 512, 4096]
    cells = {BORDER: border_of(sizes, [[0.004 + 2e-6 * size] * 10 for size in sizes])}
    kernel = Kernel("point", 10.0, 100.0, 100.0)
    measured = [
        Measured("convolution #1", (kernel,), ((out, into),), 100 * into, [0.004 + 1e-6 * 100 * into + 1e-3 * out] * 10)
        for out, into in ((8, 8), (16, 8), (16, 16))
    ]
    cell = with_points(cells, measured)["convolution #1"]
    assert cell.label == "convolution"
    assert [point.widths for point in cell.points] == [((8, 8),), ((16, 8),), ((16, 16),)]
    # half of what the border moves is what it takes in, and the rest of a call is its constant
    assert np.allclose([point.milliseconds for point in cell.points], [0.008, 0.016, 0.016])
    assert cells.keys() == {BORDER}


def test_what_has_its_place_several_times_counts_by_its_mean():
    kernel = Kernel("point", 1.0, 1.0, 1.0)
    same = [Measured("a #1", (kernel,), ((8, 8),), 1, [ms] * 10) for ms in (1.004, 3.004)]
    assert [p.milliseconds for p in with_points({BORDER: BORDERS}, same)["a #1"].points] == [pytest.approx(2.0)]


class Repeated(nn.Module):
    """Blocks alike, past which their input goes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 1)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


@pytest.mark.skipif(not find_spec("executorch"), reason="needs the extra 'mobile' (executorch)")
def test_blocks_alike_have_the_same_widths_in_a_copy():
    design = designed(Repeated().eval(), torch.zeros(1, 3, 8, 8), XNNPACK(), 7, Channel())
    inner = {name: [] for name in ("blocks.0.0.weight", "blocks.1.0.weight", "blocks.2.0.weight")}
    for _, pieces in design.kinds:
        if pieces[0].weights[0][0] in inner:
            inner[pieces[0].weights[0][0]] = [piece.widths[0][0] for piece in pieces]
    first, *others = inner.values()
    assert others == [first, first]
    # spread: of three random widths one is in each third
    assert sorted(math.ceil(3 * (width / 24 - 1 / 8) / (7 / 8)) for width in first[4:]) == [1, 2, 3]


def test_no_cell_is_left_with_nothing():
    cells = {BORDER: border_of([64], [[1.0] * 10])}
    cell = with_points(cells, [Measured("a #1", (Kernel("point", 1.0, 1.0, 1.0),), ((1, 1),), 1, [0.5] * 10)])["a #1"]
    assert cell.points[0].milliseconds == pytest.approx(0.025)


@pytest.mark.skipif(not find_spec("executorch"), reason="needs the extra 'mobile' (executorch)")
def test_the_same_widths_at_each_call_and_the_extremes_among_them():
    torch.manual_seed(0)
    model, image, backend = Wide().eval(), torch.zeros(1, 3, 40, 40), XNNPACK()
    design, again = (designed(model, image, backend, 5, Channel()) for _ in range(2))
    turns = design.turns(LatencyTable())
    assert [[(key, piece.widths) for key, piece in own] for own in turns] == [
        [(key, piece.widths) for key, piece in own] for own in again.turns(LatencyTable())
    ]
    assert [[(key, piece.widths) for key, piece in own] for own in turns[:4]] == [
        [(key, widths) for (key, _), widths in zip(design.cells, anchor, strict=True)] for anchor in design.anchors
    ]
    stems = [own[0][1].widths[0][0] for own in turns]
    assert (len(stems), max(stems), min(stems)) == (5, stems[0], stems[1])
    known = LatencyTable(cells=with_points({BORDER: BORDERS}, [Measured.of(*turns[0][0], [1.0] * 10)]))
    assert [len(own) for own in design.turns(known)] == [len(turns[0]) - 1, *(len(own) for own in turns[1:])]
    wanted = [each for own in turns for each in own]
    sizes = border_sizes([piece for _, piece in wanted])
    assert len(sizes) == 3
    assert sizes == sorted(sizes)


@pytest.mark.skipif(not find_spec("executorch"), reason="needs the extra 'mobile' (executorch)")
def test_cells_become_integers_but_for_skipped_ones_on_inputs_of_their_own():
    torch.manual_seed(0)
    model, image = Wide().eval(), torch.zeros(1, 3, 40, 40)
    # batches of the whole network, which enter no cell but the first
    backend, plain = (XNNPACK(quantization=Int8([torch.randn(2, 3, 40, 40)], skip=own)) for own in (("last",), ()))
    design = designed(model, image, backend, 3, Channel())

    def is_of_integers(program: Program) -> bool:
        graph = graph_of(EagerModel(program.module), program.tensors, backend, quantize=program.quantize).program
        return any("quantize_per_tensor" in str(node.target) for node in graph.graph.nodes)

    made = {
        piece.weights[0][0]: is_of_integers(cell_program(piece, backend))
        for _, pieces in design.kinds
        for piece in pieces[:1]
    }
    assert {name for name, of_integers in made.items() if not of_integers} == {"last.weight"}
    assert is_of_integers(design.wholes[1])
    assert not is_of_integers(border_program(64))
    # layers in float share no points with those of integers
    keys = [[key for key, _ in designed(model, image, each, 3, Channel()).kinds] for each in (plain, XNNPACK())]
    assert keys[0] == keys[1]
    assert [key == own for key, own in zip((key for key, _ in design.kinds), keys[0], strict=True)].count(False) == 1


@pytest.mark.skipif(not find_spec("executorch"), reason="needs the extra 'mobile' (executorch)")
@pytest.mark.parametrize("window", [1, 3])
def test_a_copy_whose_convolution_has_one_group_left_has_the_cells_of_the_others(window: int):
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, window, groups=4), nn.ReLU(), nn.Conv2d(16, 2, 1)
    ).eval()
    design = designed(model, torch.zeros(1, 3, 9, 9), XNNPACK(), 3, Channel())
    grouped = [piece for key, pieces in design.kinds if len(pieces[0].weights) == 1 for piece in pieces]
    kept = [layer.groups for whole in design.wholes for layer in whole.module.modules() if isinstance(layer, nn.Conv2d)]
    assert min(kept[1::3]) == 1 < max(kept[1::3])
    assert len(design.kinds) == 3
    assert len(grouped) == 9
