"""The socket that the server listens at. Without torch, so that a port in use is found at once."""

import socket

from dwellmoe.errors import UserError
from dwellmoe.log import warn_once
from dwellmoe.serving.settings import LOOPBACK, ServingSettings


def listening_socket(settings: ServingSettings) -> socket.socket:
    """A socket bound to host and port, which does not listen yet: who connects is refused until it does.

    Raises UserError for an address that is not this machine's, and for a port in use.
    """
    where = f"--host {settings.host} --port {settings.port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{where}: no such address: {_said(error)}") from None
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        raise UserError(f"{where}: {_said(error)}: choose another, or stop what listens there") from None
    if settings.host not in LOOPBACK and not settings.api_key:
        warn_once(f"{where}: whoever reaches this machine can use the model; --api_key asks for a token")
    return found


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def url_of(found: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = found.getsockname()[:2]
    return f"http://[{host}]:{port}" if found.family == socket.AF_INET6 else f"http://{host}:{port}"
