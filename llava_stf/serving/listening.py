"""Where a server listens: sockets that are bound before anything is loaded, and how many connections they may bring."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass

from llava_stf.errors import LlavaStfError

MAX_CONNECTIONS = 512
MAX_ACCEPTS = 64  # at one turn of the event loop
QUEUE = 256  # connections that the system holds until they are accepted
SPARE_FILES = 32  # for what the server opens itself


def bind(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Sockets of every address that a host name has; port 0 takes a free one, the same for all.

    Args:
        host: A name or an address of this machine.
        port: Of all sockets.
        shared: Whether other processes of this user may listen there, too, if all of them ask for that; the system
            spreads connections over them.

    Raises:
        LlavaStfError: The port is taken or not allowed, or the host is none of this machine; or this system has no
            ports that are shared.
    """
    if shared and not hasattr(socket, "SO_REUSEPORT"):
        raise LlavaStfError("This system has no ports that processes share; start one server a port, behind a proxy.")
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sockets.append(one := socket.socket(family, kind, protocol))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address[0], port, *address[2:]))
            port = one.getsockname()[1]
    except (OSError, UnicodeError) as error:
        for one in sockets:
            one.close()
        reason = getattr(error, "strerror", None) or error
        raise LlavaStfError(
            f"Cannot listen at {host}, port {port} ({reason}); choose another --port (0 takes a free one) or --host, "
            "or start every server of this port with --share-port."
        ) from error
    return sockets


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections are open at a time, and how many are accepted at one turn of the event loop."""

    connections: int = MAX_CONNECTIONS
    accepts: int = MAX_ACCEPTS


def connection_limits() -> ConnectionLimits:
    """What the files that this process may open leave room for; an accept without a file would fail again and again."""
    if sys.platform == "win32":
        return ConnectionLimits()
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return ConnectionLimits()
    room = max(8, allowed - len(os.listdir("/dev/fd")))
    room -= min(SPARE_FILES, room // 4)
    # A connection that made room for another one is closed four or five turns later.
    return ConnectionLimits(min(MAX_CONNECTIONS, room // 2), max(1, min(MAX_ACCEPTS, room // 10)))
