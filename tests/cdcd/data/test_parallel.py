import os
import time

import pytest

from cdcd.data.parallel import ordered_map


def slow_for_even(number):
    time.sleep(0.05 * (number % 2 == 0))
    return number, os.getpid()


def fail_at_three(number):
    if number == 3:
        raise ValueError("three")
    return number


def die(_number):
    os._exit(9)


def test_results_keep_the_order_of_the_items():
    results = list(ordered_map(slow_for_even, range(20), 2))
    assert [number for number, _ in results] == list(range(20))
    assert os.getpid() not in {process for _, process in results}


def test_one_worker_runs_here():
    assert list(ordered_map(slow_for_even, [1], 1)) == [(1, os.getpid())]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_arrives_at_its_item(num_workers):
    results = ordered_map(fail_at_three, range(6), num_workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_a_dead_worker_is_one_line():
    with pytest.raises(ChildProcessError, match="one died, usually for lack of memory; lower"):
        list(ordered_map(die, [1], 2))


def test_items_are_taken_only_as_results_are():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = ordered_map(fail_at_three, items(), 2)
    next(results)
    assert len(taken) <= 10
    results.close()
