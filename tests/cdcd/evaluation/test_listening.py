import multiprocessing
import multiprocessing.pool

import numpy as np

from cdcd.evaluation.listening import Clip, listeners


def test_workers_go_home_before_the_pool_is_torn_down(monkeypatch):
    """A worker killed while it holds the queue's lock leaves the evaluation waiting for ever."""
    alive_at_the_end = []
    terminate = multiprocessing.pool.Pool.terminate

    def spy(pool):
        alive_at_the_end.append(
            sum(worker.is_alive() for worker in multiprocessing.active_children())
        )
        terminate(pool)

    monkeypatch.setattr(multiprocessing.pool.Pool, "terminate", spy)
    random = np.random.default_rng(0)
    clips = [
        Clip(str(i), random.uniform(-0.5, 0.5, 44100).astype(np.float32), 2, with_rhythm=False)
        for i in range(12)
    ]
    with listeners(2) as listen:
        assert [name for name, _ in listen(clips)] == [str(i) for i in range(12)]
    assert alive_at_the_end == [0]
