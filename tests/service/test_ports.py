"""Two services never take one port, however close to each other they start."""

import socket
from contextlib import ExitStack

import pytest

from service import ports


def _lowest_free(count: int) -> range:
    """A range with room for two windows of `count` ports, so that a third has none."""
    with ExitStack() as held:
        first = ports.hold(2 * count + 1, ports.FOR_REPLICAS, held)
    return range(first[0] - 1, first[-1] + 1)


def test_ports_are_held_before_anybody_listens_on_them_and_free_again_afterwards() -> None:
    within = _lowest_free(3)
    with ExitStack() as one:
        with ExitStack() as other:
            taken = [ports.hold(3, within, one), ports.hold(3, within, other)]
            assert len({port for window in taken for port in window}) == 6
            with pytest.raises(ports.NoPort, match=rf"no 3 free ports .* {within[0]} and"):
                ports.hold(3, within, one)
        assert ports.hold(3, within, one) == taken[1]


def test_a_window_with_a_port_in_use_is_not_taken() -> None:
    within = _lowest_free(3)
    with socket.create_server(("127.0.0.1", within[3])), ExitStack() as held:
        assert ports.hold(3, within, held) == within[5:8]


def test_a_port_that_was_asked_for_and_is_in_use_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ports.NoPort, match=rf"grpc_port: 127.0.0.1:{port}: .*in use"):
            ports.ensure_free("127.0.0.1", port, "grpc_port")
        # a connection that the server ended leaves the port in TIME_WAIT
        with socket.create_connection(server.getsockname()):
            server.accept()[0].close()
    ports.ensure_free("127.0.0.1", port, "grpc_port")
