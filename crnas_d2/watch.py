"""Notices within a minute that a process has died, on this machine or another.

Operations in which all processes take part do not: one that computes alone is in none, NCCL waits for
ten minutes, and whoever waits for a machine without power waits for half an hour. So every process
keeps a connection to rank 0 all the time. The operating system closes it when either of them dies, and
asks after a machine that is silent; no Python has to run for that, so a long computation is no alarm.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from detectron2.utils import comm

# Seconds before the system first asks a silent machine, seconds between questions, and questions
# without an answer after which it is gone: 45 seconds in all.
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6}
FINISHED = b"."


@contextmanager
def watched(host: str) -> Iterator[None]:
    """While inside, the death of another process ends this one with status 1.

    All processes enter and leave together. One that leaves by an exception prints its error before it
    ends, and only with its end do the others notice.

    Args:
        host: of rank 0, for the others.
    """
    connections = _connections(host)
    for rank, connection in connections.items():
        threading.Thread(target=_wait_for, args=(rank, connection), daemon=True).start()
    yield
    comm.synchronize()  # nobody takes the end of one that was quicker for its death
    for connection in connections.values():
        with suppress(OSError):
            connection.sendall(FINISHED)


def _connections(host: str) -> dict[int, socket.socket]:
    """Rank 0's to everybody, everybody's to rank 0."""
    rank, world = comm.get_rank(), comm.get_world_size()
    server = _server(world) if rank == 0 else None
    port = comm.all_gather(server.getsockname()[1] if server else None)[0]
    connections = {}
    if server is None:
        connections[0] = socket.create_connection((host, port), timeout=60)
        connections[0].sendall(rank.to_bytes(4, "big"))
    else:
        for _ in range(world - 1):
            connection, _ = server.accept()
            connections[int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")] = connection
        server.close()
    for connection in connections.values():
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connections


def _server(world: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    server = socket.create_server(("", 0), family=family, backlog=world, dualstack_ipv6=dual)
    server.settimeout(60)
    return server


def _wait_for(rank: int, connection: socket.socket) -> None:
    try:
        last = connection.recv(1)
    except OSError:
        last = b""
    if last != FINISHED:
        why = "its own error stands above, unless it was killed"
        print(f"error: process {rank} has died; {why}", file=sys.stderr, flush=True)
        os._exit(1)
