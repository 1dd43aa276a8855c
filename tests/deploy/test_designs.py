"""What is measured of a network, and how what a call takes by itself is taken off."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from deploy_models import Wide

from lightning_prune import Channel
from lightning_prune.deploy import XNNPACK, LatencyTable
from lightning_prune.deploy.designs import BORDER, Measured, border_of, border_sizes, designed, with_points
from lightning_prune.selection.cells import Kernel


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


def test_no_cell_is_left_with_nothing():
    cells = {BORDER: border_of([64], [[1.0] * 10])}
    cell = with_points(cells, [Measured("a #1", (Kernel("point", 1.0, 1.0, 1.0),), ((1, 1),), 1, [0.5] * 10)])["a #1"]
    assert cell.points[0].milliseconds == pytest.approx(0.025)


@pytest.mark.skipif(not find_spec("executorch"), reason="needs the extra 'mobile' (executorch)")
def test_the_same_widths_at_each_call_and_the_extremes_among_them():
    torch.manual_seed(0)
    model, image, backend = Wide().eval(), torch.zeros(1, 3, 40, 40), XNNPACK()
    design, again = (designed(model, image, backend, 5, Channel()) for _ in range(2))
    wanted = design.wanted(LatencyTable(), 5)
    assert [(key, piece.widths) for key, piece in wanted] == [
        (key, piece.widths) for key, piece in again.wanted(LatencyTable(), 5)
    ]
    for key, pieces in design.kinds:
        own = [piece.widths for name, piece in wanted if name == key]
        assert pieces[0].widths in own
        assert pieces[1].widths in own
        assert len(own) == 5
    sizes = border_sizes([piece for _, piece in wanted])
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
