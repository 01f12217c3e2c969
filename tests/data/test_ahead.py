from threading import Event, Lock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapray.data.reading import map_ahead

WAIT = 10


class Begun:
    """A function that tells which items were begun, and lasts until it may end."""

    def __init__(self):
        self.items, self.may_end = [], Event()
        self._lock, self._reached = Lock(), {}

    def __call__(self, item):
        with self._lock:
            self.items.append(item)
            event = self._reached.setdefault(len(self.items), Event())
        event.set()
        assert self.may_end.wait(WAIT)
        return item

    def wait_for(self, count):
        with self._lock:
            event = self._reached.setdefault(count, Event())
            if len(self.items) >= count:
                event.set()
        return event.wait(WAIT)


@given(st.lists(st.integers(), max_size=20), st.integers(1, 5))
def test_gives_what_map_gives_in_its_order(items, threads):
    assert list(map_ahead(lambda item: 2 * item, items, threads)) == [2 * item for item in items]


@pytest.mark.parametrize("threads", [1, 3])
def test_no_item_is_taken_or_begun_more_than_so_many_before_it_is_asked_for(threads):
    taken, begun = [], Begun()
    begun.may_end.set()

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    results = map_ahead(begun, items(), threads)
    assert taken == []
    for asked in range(1, 10):
        next(results)
        assert len(taken) == asked + threads
        assert begun.wait_for(asked)
        assert len(begun.items) <= asked + threads
    results.close()


def test_as_many_as_there_are_threads_work_at_a_time():
    begun = Begun()
    results = map_ahead(begun, range(9), 3)

    def releasing():
        assert begun.wait_for(3)
        begun.may_end.set()
        return 0

    # the first is asked for by another thread, since none of the three can end before all have begun
    first = map_ahead(lambda work: work(), [lambda: next(results), releasing], 2)
    assert list(first) == [0, 0]
    assert list(results) == list(range(1, 9))


def test_what_raises_is_raised_when_its_turn_comes():
    results = map_ahead(lambda item: 1 // (3 - item), range(9), 8)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_begins_nothing_before_it_is_asked_for_anything():
    taken = []
    map_ahead(lambda item: item, (taken.append(item) for item in range(3)), 2)
    assert taken == []


def test_closed_early_it_begins_no_more():
    begun, taken = Begun(), []

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    results = map_ahead(begun, items(), 2)
    begun.may_end.set()
    assert next(results) == 0
    begun.may_end.clear()
    # both threads are busy, or about to be, with what was begun
    assert begun.wait_for(3)
    results.close()
    begun.may_end.set()
    assert taken == [0, 1, 2]
    assert sorted(begun.items) == [0, 1, 2]
