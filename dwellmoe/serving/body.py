"""Reads the body of a request, within bounds of size and time."""

import asyncio

from starlette.requests import Request

from dwellmoe.serving.errors import RequestError

MOST_BYTES = 4 << 20
"""Some times the text that the longest contexts hold."""
MOST_DISCARDED_BYTES = 64 << 20
MOST_SECONDS = 30.0


async def read_body(request: Request) -> bytes:
    """The bytes of a JSON body. Raises RequestError for another type, one too large, and one too slow.

    Only this type is read: a page of another site may send any other from a visitor's browser without asking.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, f"Content-Type must be application/json, found {kind[:60]!r}")
    try:
        async with asyncio.timeout(MOST_SECONDS):
            return await _bounded(request)
    except TimeoutError:
        raise RequestError(408, f"the body did not come within {MOST_SECONDS:g} s") from None


async def _bounded(request: Request) -> bytes:
    """Of a body that is too large the rest is read, up to a bound, so that its sender gets to the answer."""
    kept, total = bytearray(), 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > MOST_DISCARDED_BYTES:
            break
        if total <= MOST_BYTES:
            kept += chunk
    if total > MOST_BYTES:
        raise RequestError(413, f"the body is larger than {MOST_BYTES} bytes")
    return bytes(kept)
