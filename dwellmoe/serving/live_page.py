"""The live page at `/`, and what it asks for once a second while somebody looks at it."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from dwellmoe.serving.errors import RequestError
from dwellmoe.serving.generation_queue import GenerationQueue
from dwellmoe.serving.live_figures import LiveFigures
from dwellmoe.web import page_template

PAGE = Path(__file__).parent / "page" / "page.html.jinja"
HEADERS = {"content-security-policy": "frame-ancestors 'none'"}
"""No other page may show this one, and have its visitors click in it; the rest stands in the page."""
MOST_DIGITS = 18


def live_routes(figures: LiveFigures, queue: GenerationQueue) -> list[Route]:
    """The page and its figures."""
    page = page_template(PAGE).render()

    async def live_page(_: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def live(request: Request) -> Response:
        found = figures.since(_whole(request, "answer"), _whole(request, "tokens"))
        waiting = {"running": queue.running, "waiting": queue.waiting}
        return JSONResponse(found | {"queue": waiting})

    return [Route("/", live_page), Route("/v1/live", live)]


def _whole(request: Request, name: str) -> int:
    """A whole number of the query, 0 where it is missing. Raises RequestError for anything else."""
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS):
        raise RequestError(400, f"{name}: must be a whole number, found {text[:40]!r}", param=name)
    return int(text)
