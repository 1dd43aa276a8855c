"""A frame gives back the shapes of the beginning, and what it adds it can take away again."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.model.frame import Frame


@given(st.data())
def test_widening_fills_the_gaps_and_narrowing_takes_them_out(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    keep = {
        axis: tuple(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
        for axis, size in enumerate(shape)
        if data.draw(st.booleans())
    }
    frame = Frame({"w": shape}, {"w": keep})
    now = torch.rand(frame.shape_now("w", shape)) + 1
    wide = frame.widen("w", now, -3.0)
    expected = np.full(shape, -3.0, dtype=np.float32)
    expected[np.ix_(*(keep.get(axis, range(size)) for axis, size in enumerate(shape)))] = now.numpy()
    assert np.array_equal(wide.numpy(), expected)
    assert torch.equal(frame.narrow("w", wide), now)


def test_what_has_not_shrunk_is_handed_on_as_it_is() -> None:
    tensor = torch.ones(3, dtype=torch.bool)
    assert Frame().widen("w", tensor, False) is tensor
    assert Frame().narrow("w", tensor) is tensor
