"""Texts that anybody may have written."""

from hypothesis import given
from hypothesis import strategies as st
from report_cases import HOSTILE

from lightning_prune.study.report._texts import cleaned, shortened


@given(st.text())
def test_a_cleaned_text_can_be_written(text: str) -> None:
    cleaned(text).encode()
    assert len(cleaned(text)) == len(text)
    assert cleaned(cleaned(text)) == cleaned(text)


def test_marks_of_direction_do_not_turn_the_page() -> None:
    assert not set(cleaned(HOSTILE)) & set("\x00\u202e\ud800")


@given(st.text(), st.integers(3, 40))
def test_shortened_is_short(text: str, most: int) -> None:
    assert len(shortened(text, most)) <= max(most, 3)
    assert shortened(text, len(text)) == text


def test_names_of_a_deep_model_stay_different() -> None:
    names = [f"encoder.layers.{i}.attention.output.{part}" for i in range(12) for part in ("dense", "norm")]
    assert len({shortened(name, 18) for name in names}) == len(names)
