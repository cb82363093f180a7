"""Any Serve application as the service is started: same ingress, same cluster, same route."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service import app
from service.config import ServiceConfig


def host(build: Callable[[ServiceConfig], Any]) -> None:
    """Run `build`'s application on the bundle named on the command line, until SIGTERM.

    Its ingress needs a method `drain`. Prints `ready at URL`, as `reward-serve run` does.
    """
    app.build_app = build
    config = ServiceConfig(bundle=Path(sys.argv[1]), port=0, grpc_port=0)
    app.run(config, announce=lambda line: print(line, flush=True))
