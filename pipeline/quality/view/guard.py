"""Access control of a viewer, which is read-only, local, and limited to browsers that opened a one-time URL.

Requests with another Host header are rejected. This prevents DNS rebinding.
"""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from segmint.pipeline.serving.door import KEY, HeadersMiddleware, OneTimeKeys

_ADVICE = """\
<p>To get a new one, use &ldquo;Open in another browser&rdquo; in a browser where the viewer is open.</p>
<p>If the viewer isn't open in any of your browsers, another user of this machine may have used the address.
Stop <code>segmint view</code> with Ctrl-C and start it again.</p>"""


class SessionKeys(OneTimeKeys):
    """One-time keys and sessions of a viewer that listens on `port`. All sessions belong to the same unnamed person."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    def address(self) -> str:
        """Return a new URL that opens one browser, and revoke the previous URL if it is unused."""
        return f"http://127.0.0.1:{self.port}/?{KEY}={self.new_key('')}"


class ViewerGuard(HeadersMiddleware):
    """Middleware that enforces the rules in the module docstring."""

    def __init__(self, app: ASGIApp, access: SessionKeys) -> None:
        port = access.port
        super().__init__(app, f"segmint-view-{port}", "segmint view", _ADVICE)
        self._access = access
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    def _answer(self, request: Request) -> Response | None:
        if request.headers.get("host", "").lower() not in self._hosts:
            return PlainTextResponse("This viewer only responds at 127.0.0.1 and localhost.", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("This viewer is read-only.", 405, {"allow": "GET, HEAD"})
        inside = self._access.name_of(self._session(request)) is not None
        entered = self._enter(request, self._access.enter, inside)
        if entered is not None or inside:
            return entered
        return PlainTextResponse("Open the address that `segmint view` printed: it contains the key.", 403)
