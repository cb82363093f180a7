"""What SIGTERM does to a replica's process. Knows Ray's worker; knows nothing of replicas."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from ray._private import worker as private

worker: Any = private  # it exports nothing to type checkers


def on_sigterm(leave: Callable[[], None], within_s: float) -> None:
    """Call `leave` at the first SIGTERM; the process ends after `within_s`, or at the second.

    Left alone, Ray's worker stops its event loop at once and every request on it. Python sets
    signal handlers in the main thread only, where Ray waits in C++ and runs nothing of ours; so
    what Ray's own handler calls there is replaced. `leave` runs there: it may set a flag.
    """
    end = worker.raise_sys_exit_with_custom_error_message

    def begin(message: str, exit_code: int = 0) -> None:
        worker.raise_sys_exit_with_custom_error_message = end
        last = threading.Timer(within_s, os.kill, (os.getpid(), signal.SIGTERM))
        last.daemon = True
        last.start()
        leave()

    worker.raise_sys_exit_with_custom_error_message = begin
