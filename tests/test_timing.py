"""What measures for policy "fastest", by a clock that is told."""

import pytest

from fastcnn import _timing


def test_the_timer_gives_each_call_its_turns():
    """By a clock that adds up what the calls say they take."""
    order = []

    def block(call, calls):
        order.append(call)
        return calls * call()

    slow, fast = (lambda: 4e-3), (lambda: 1e-3)
    assert _timing._in_turn([slow, fast], block) == [pytest.approx(4e-3), pytest.approx(1e-3)]
    assert order[:2] == [slow, fast]  # how many make a block
    assert order[2:8] == [slow, fast, fast, slow, slow, fast]
    assert len(order) == 2 + 2 * _timing.ROUNDS
