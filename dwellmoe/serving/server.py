"""Runs the server until a stop signal: loads the model, listens, and ends what runs."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from dwellmoe.serving.app import Service, application
from dwellmoe.serving.command_line import Options
from dwellmoe.serving.listening import url_of
from dwellmoe.serving.served_model import load_served_model
from dwellmoe.serving.settings import ServingSettings

MOST_CONNECTIONS = 1000
IDLE_SECONDS = 15
"""After which an unused connection is closed. Clients drop theirs after five, and must not find it closed
just as they ask again.
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SPARE_SECONDS = 5
"""For the last words of answers that are cut, before connections are."""


def serve(listening: socket.socket, options: Options) -> None:
    """Serves at a bound socket until SIGINT or SIGTERM. Raises UserError for a model that cannot load."""
    settings: ServingSettings = options.own
    served = load_served_model(options)
    service = Service(served, settings)
    config = uvicorn.Config(
        application(service),
        log_level="warning",
        access_log=False,
        lifespan="off",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(settings.stop_seconds) + SPARE_SECONDS,
    )
    try:
        Server(config, service).run([listening])
    finally:
        service.end()
    print("stopped", flush=True)


class Server(uvicorn.Server):
    """uvicorn's server, which on a stop signal lets the running answer end, or cuts it after a while."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says where."""
        await super().startup(sockets)
        names = ", ".join(self._service.served.variants)
        for url in map(url_of, sockets or ()):
            print(f"serving {names} at {url}/v1, live figures at {url}/", flush=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's own, which raises each signal again in the end: a stop is no failure."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        """A second signal cuts the running answer at once."""
        queue, seconds = self._service.queue, self._service.settings.stop_seconds
        queue.close()
        asyncio.get_running_loop().call_later(0 if self.should_exit else seconds, queue.cut)
        self.should_exit = True
