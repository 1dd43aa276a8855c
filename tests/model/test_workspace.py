"""Where XNNPACK puts what a program computes."""

import random

import pytest

from lightning_prune.model.workspace import Step, workspace


def test_a_chain_of_equal_tensors_is_laid_one_above_the_other():
    chain = [Step((number,), number + 1) for number in range(5)]
    assert workspace(chain, dict.fromkeys(range(1, 5), 1000)) == (4 * 1024, (4, 3, 2, 1))


def test_a_smaller_tensor_goes_into_the_room_between_others():
    # 1 and 3 live together with 2, which lies between them at first: 4 fits where 2 was
    steps = [Step((0,), 1), Step((0,), 2), Step((1, 2), 3), Step((1, 3), 4), Step((1, 3, 4), 5)]
    size, stack = workspace(steps, {1: 512, 2: 256, 3: 128, 4: 64})
    assert (size, stack) == (512 + 256 + 128, (3, 2, 1))


def test_what_is_written_in_place_takes_nothing():
    steps = [Step((0,), 1), Step((1,), 2, in_place=True), Step((2,), 3)]
    assert workspace(steps, {1: 640, 2: 640}) == (640, (1,))
    apart = [Step((0,), 1), Step((1,), 2), Step((2,), 3)]
    assert workspace(apart, {1: 640, 2: 640}) == (1280, (2, 1))


@pytest.mark.parametrize("sizes", [{1: 640, 2: 320}, {2: 640}], ids=["another size", "the caller's"])
def test_only_a_tensor_of_the_same_size_that_is_not_the_callers_is_written_over(sizes: dict[int, int]):
    steps = [Step((0,), 1), Step((1,), 2, in_place=True), Step((2,), 3)]
    assert workspace(steps, sizes)[0] == sum(sizes.values())


def test_what_is_read_again_is_not_written_over():
    steps = [Step((0,), 1), Step((1,), 2, in_place=True), Step((1, 2), 3)]
    assert workspace(steps, {1: 640, 2: 640})[0] == 1280


def test_sizes_are_rounded_up_to_64_bytes():
    assert workspace([Step((0,), 1), Step((1,), 2)], {1: 65})[0] == 128


def test_nothing_between_takes_nothing():
    assert workspace([Step((0,), 1)], {}) == (0, ())


@pytest.mark.parametrize("seed", range(20))
def test_it_holds_what_lives_at_one_time_and_the_stack_adds_up(seed: int):
    drawn = random.Random(seed)
    steps, made = list[Step](), [0]
    for number in range(1, 30):
        reads = tuple(drawn.sample(made[-5:], min(len(made), drawn.choice([1, 1, 2]))))
        steps.append(Step(reads, number))
        made.append(number)
    sizes = {number: 64 * drawn.choice([1, 2, 4, 8]) for number in range(1, 29)}
    size, stack = workspace(steps, sizes)
    live = max(
        sum(
            own
            for tensor, own in sizes.items()
            if tensor - 1 <= now <= max((k for k, s in enumerate(steps) if tensor in s.reads), default=tensor - 1)
        )
        for now in range(len(steps))
    )
    assert live <= size <= sum(sizes.values())
    assert sum(sizes[tensor] for tensor in stack) == size
