"""Steps of different items at the same time, in order."""

import threading

import pytest

from pfpn_tf.utils import overlap


def test_steps_overlap_and_keep_their_order():
    """No step of an item ends before the step that feeds it has begun with the next item."""
    log = []
    begun = {(name, i): threading.Event() for name in ("load", "work", "write") for i in range(8)}

    def step(name, before=None):
        def run(item, *_):
            begun[name, item].set()
            if before and item < 7:
                assert begun[before, item + 1].wait(600), "the steps do not overlap"
            log.append((name, item))
            return item

        return run

    steps = step("load"), step("work", "load"), step("write", "work")
    assert list(overlap.overlapped(range(8), *steps)) == list(range(8))
    for name in ("load", "work", "write"):
        assert [item for kind, item in log if kind == name] == list(range(8))


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    steps = overlap.overlapped(items(), lambda i: i, lambda i: i, lambda i, _: i, workers=2)
    assert next(steps) == 0
    assert len(taken) < 10
    steps.close()


@pytest.mark.parametrize("failing", ["load", "work", "write"])
def test_an_error_in_any_step_stops_the_rest(failing):
    seen = []

    def step(name):
        def run(item, *_):
            if name == failing and item == 3:
                raise RuntimeError(name)
            seen.append((name, item))
            return item

        return run

    done = []
    with pytest.raises(RuntimeError, match=failing):
        for item in overlap.overlapped(range(50), step("load"), step("work"), step("write")):
            done.append(item)
    assert done == [0, 1, 2]
    assert max(item for _, item in seen) < 20
