"""Responses of web applications: pages with their files, JSON, JPEGs, and errors as JSON."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.uris import redact
from segmint.pipeline.serving.images import NoImageError, UnknownImageError

ASSETS = Path(__file__).parent / "assets"
"""Files shared by all pages."""

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_DIGITS = 40  # maximum length of a number in a URL; Python only parses numbers of up to 4,300 digits
_SHOWN = 60  # maximum length of an invalid value that a response repeats


def page_routes(page: Path) -> list[Route]:
    """Create a page's route and, below `/assets/`, routes for the files in its folder and for shared files."""
    files = [*sorted(ASSETS.iterdir()), *sorted(page.parent.iterdir())]
    served = {path.name: path for path in files if path.suffix in _TYPES}
    return [Route("/", _file(page)), *(Route(f"/assets/{name}", _file(path)) for name, path in served.items())]


def _file(path: Path) -> Callable[[Request], Response]:
    """Create a handler that responds with a file. The file is read immediately."""
    content = path.read_bytes()
    return lambda _: Response(content, media_type=_TYPES[path.suffix])


def image_of(request: Request) -> int:
    """Parse the image id in a URL. Raises `UnknownImageError` if it isn't a number."""
    text: str = request.path_params["image"]
    return parse_number(text, UnknownImageError(f"this dataset has no image {shortened(text)!r}"))


def parse_number(text: str, problem: SegmintError) -> int:
    """Parse a number. Raises `problem` if the text isn't a number, or has more digits than any id."""
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise problem
    return int(text)


def shortened(text: str) -> str:
    """Shorten an invalid value for an error message that repeats it."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def jpeg_response(data: bytes) -> Response:
    """Return a response with a JPEG."""
    return Response(data, media_type="image/jpeg")


def json_response(value: Any, status: int = 200) -> Response:
    """Return a response with JSON."""
    text = json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)
    return Response(text, status, media_type="application/json")


def _plain(value: Any) -> Any:
    """Convert a table's value for JSON. NaN and infinities, which a damaged table may contain, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def problem(status: int) -> Callable[[Request, Exception], Response]:
    """Create a handler that responds to an exception with its text."""

    def answer(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": redact(str(error))}, status)

    return answer


def _http_problem(_: Request, error: Exception) -> Response:
    """Return the response for a URL or method that does not exist."""
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    return JSONResponse({"error": detail}, status)


PROBLEMS: Mapping[Any, Callable[[Request, Exception], Response]] = MappingProxyType(
    {
        UsageError: problem(400),
        UnknownImageError: problem(404),
        NoImageError: problem(404),
        HTTPException: _http_problem,
        StorageFaultError: problem(502),
        SegmintError: problem(500),
    }
)
"""Handlers for the errors that all applications share."""
