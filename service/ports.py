"""Ports that no two services on one machine take. Knows sockets; knows no Ray.

That a port is free says little: Ray listens on it some ten seconds later, and meanwhile another
service that starts finds it free as well.
"""

import contextlib
import random
import socket
from contextlib import ExitStack

from service.errors import RewardError

FOR_PROXIES = range(20000, 30000)
"""Ray's workers have ports from 10002 to 19999 and its replicas from 30000; outgoing connections,
by Linux's default, from 32768"""
FOR_REPLICAS = range(61000, 65536)
"above outgoing connections' ports, by Linux's default"


class NoPort(RewardError):
    """A port is in use, or no free one is left."""

    code = "no_port"


def hold(count: int, within: range, held: ExitStack) -> range:
    """`count` ports in a row that nobody uses, and no other service takes while `held` is open.

    The port before them is what is held: bound, by a socket that never listens. Raises NoPort.
    """
    guards = within[: -count : count + 1]
    for guard in random.sample(guards, len(guards)):
        ports = range(guard + 1, guard + 1 + count)
        with contextlib.suppress(OSError), ExitStack() as taken:
            taken.enter_context(socket.socket()).bind(("", guard))
            for port in ports:
                with socket.socket() as looking:
                    looking.bind(("", port))
            held.enter_context(taken.pop_all())
            return ports
    raise NoPort(f"no {count} free ports in a row between {within[0]} and {within[-1]}")


def ensure_free(host: str, port: int, field: str) -> None:
    """Raises NoPort if somebody listens on the port that was asked for.

    Ray's own proxy would share it: the kernel then deals the connections of two services out to
    both, and one answers with the other's rewards.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as looking:
        # Connections that ended a minute ago are in nobody's way; who listens still is.
        looking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            looking.bind((host, port))
        except OSError as error:
            raise NoPort(f"{field}: {host}:{port}: {error.strerror}", field=field) from error
