"""Pools of threads that are whole from the beginning. Knows nothing of what runs in them."""

import threading
from concurrent.futures import ThreadPoolExecutor


def started(workers: int, name: str) -> ThreadPoolExecutor:
    """A pool with all its threads.

    Left alone, it starts one whenever none is idle at the moment of a call, and the thread of the
    call before may not have said yet that it is: the last one comes after minutes of load, or
    never, and looks like something that a request left behind.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    everybody = threading.Barrier(workers)
    for arrival in [pool.submit(everybody.wait) for _ in range(workers)]:
        arrival.result()
    return pool
