"""Tables of words and figures."""

from lightning_prune.tables import aligned


def test_words_are_flush_left_and_figures_flush_right() -> None:
    text = aligned([("layer", "type", "size"), ("a", "Linear", "8"), ("long.name", "Conv2d", "1,024")], words=2)
    assert text.splitlines() == [
        "layer      type     size",
        "------------------------",
        "a          Linear      8",
        "long.name  Conv2d  1,024",
    ]


def test_remarks_and_a_total() -> None:
    rows = [("tensor", "zeros", ""), ("a", "10", "masked"), ("in all", "10", "")]
    assert aligned(rows, remarks=1, has_total=True).splitlines() == [
        "tensor  zeros",
        "---------------------",
        "a          10  masked",
        "---------------------",
        "in all     10",
    ]
