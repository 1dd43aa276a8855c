"""Texts that anybody may have written."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.study.report._texts import shortened


@given(st.text(), st.integers(3, 40))
def test_shortened_is_short(text: str, most: int) -> None:
    assert len(shortened(text, most)) <= max(most, 3)
    assert shortened(text, len(text)) == text


def test_names_of_a_deep_model_stay_different() -> None:
    names = [f"encoder.layers.{i}.attention.output.{part}" for i in range(12) for part in ("dense", "norm")]
    assert len({shortened(name, 18) for name in names}) == len(names)
