"""A pool of threads does not grow while it serves."""

import threading

from service.threads import started


def test_a_pool_has_all_its_threads_before_its_first_call() -> None:
    pool = started(3, "early")
    early = [thread for thread in threading.enumerate() if thread.name.startswith("early")]
    assert len(early) == 3
    assert {pool.submit(threading.current_thread).result() for _ in range(50)} <= set(early)
    pool.shutdown()
