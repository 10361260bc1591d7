"""Structured logs on standard error: readable text on a terminal, JSON lines otherwise, and never any secrets."""

import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TextIO

from segmint.infra.uris import redact
from segmint.infra.wording import fit, is_terminal, open_stream, without_controls

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_SECRET_KEY = re.compile(
    r"(?i)secret|password|passwd|credential|authorization|signature|api_?key|access_?key|account_key|"
    r"(^|_)token$"
)
_HIDDEN = "[redacted]"


def configure(json: bool | None = None, stream: TextIO | None = None) -> None:
    """Set up logging for this process, from the level info on. Lines go to `stream`, which defaults to standard error.

    If `json` is None, lines are in JSON unless standard error is a terminal.
    """
    import structlog

    as_json = not is_terminal(sys.stderr) if json is None else json
    renderers: list[Any] = [structlog.processors.JSONRenderer(sort_keys=False)]
    if not as_json:
        text = structlog.dev.ConsoleRenderer(
            colors=is_terminal(sys.stderr), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
        renderers = [_make_printable, text, _fit]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,  # as text, so that it's redacted like everything else
            _redact_event,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        # Look up the stream for each line, because a progress bar replaces standard error while it's shown.
        logger_factory=lambda *_: structlog.PrintLogger(open_stream(stream or sys.stderr)),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> "FilteringBoundLogger":
    """Return a logger that adds `logger=name` to its lines: `get_logger("build").info("window_started", shards=200)`.

    Call this inside functions, not at module level, because importing structlog takes 80 ms.
    """
    import structlog

    if not structlog.is_configured():
        configure()
    logger: FilteringBoundLogger = structlog.get_logger().bind(logger=name)
    return logger


def without_secrets(value: Any, key: str = "") -> Any:
    """Redact credentials in `value` at any depth. They're recognized by their keys and in URLs."""
    if key and _SECRET_KEY.search(key) and value is not None:
        return _HIDDEN
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: without_secrets(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    if isinstance(value, BaseException):
        return redact(f"{type(value).__name__}: {value}")
    return value


def _fit(_: Any, __: str, line: str) -> str:
    return fit(line, sys.stderr)


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: without_secrets(item, name) for name, item in event.items()}


def _make_printable(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace control characters in texts. The renderer escapes them in all other values, as JSON does."""
    for name, item in event.items():
        if isinstance(item, str):
            event[name] = without_controls(item)
    return event
