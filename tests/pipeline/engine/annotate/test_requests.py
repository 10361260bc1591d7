"""Bodies of requests: their limits, and how many large ones are in memory at a time."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from segmint.pipeline.engine.annotate.requests import PROBLEMS, RequestBodies
from segmint.pipeline.serving.responses import json_response

MOST = 8 << 20


class CountingApp:
    """An application that counts how many requests it answers at a time."""

    def __init__(self, **bodies: Any) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0
        limits = RequestBodies(**bodies)
        routes = [
            limits.writes("/large", self.answer, MOST),
            limits.writes("/small", self.answer),
        ]
        app = Starlette(routes=routes, exception_handlers=dict(PROBLEMS))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")

    def answer(self, _: Request, body: Any) -> Response:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.05)
        with self._lock:
            self._now -= 1
        return json_response({"kind": type(body).__name__})

    async def post(self, path: str, content: Any) -> httpx.Response:
        return await self.client.post(path, content=content)


def test_large_bodies_wait_for_one_another_and_small_ones_do_not() -> None:
    async def run(content: bytes) -> int:
        app = CountingApp(at_once=2)
        answers = await asyncio.gather(*(app.post("/large", content) for _ in range(6)))
        assert [answer.status_code for answer in answers] == [200] * 6
        return app.most

    assert asyncio.run(run(json.dumps("x" * (3 << 20)).encode())) == 2
    assert asyncio.run(run(b"{}")) > 2


def test_a_body_that_stops_is_refused_and_gives_its_place_back() -> None:
    async def stops() -> AsyncIterator[bytes]:
        yield b"[" + b" " * (2 << 20)
        await asyncio.sleep(30)

    async def run() -> None:
        app = CountingApp(at_once=1, patience_s=0.2)
        stopped = await app.post("/large", stops())
        assert stopped.status_code == 400
        assert "stalled" in stopped.json()["error"]
        assert (await app.post("/large", json.dumps("x" * (2 << 20)).encode())).status_code == 200

    asyncio.run(run())


def test_a_body_that_comes_in_drops_is_refused_and_gives_its_place_back() -> None:
    sent = 0

    async def drips() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b"[" + b" " * (2 << 20)
        while sent < 200:
            sent += 1
            await asyncio.sleep(0.05)
            yield b" "

    async def run() -> None:
        app = CountingApp(at_once=1, patience_s=0.4, slowest=1e9)
        assert (await app.post("/large", drips())).status_code == 400
        assert sent < 200
        assert (await app.post("/large", json.dumps("x" * (2 << 20)).encode())).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/large", b"x" * (MOST + 1), 413),
        ("/small", b'"' + b"x" * (64 << 10) + b'"', 413),
        ("/small", b"", 200),
        ("/small", b'{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}', 200),
        ("/small", b'{"\\ud800": 1}', 400),
        ("/small", b'["\\uDfFf"]', 400),
        ("/small", b'["\xed\xa0\x80"]', 400),
        ("/small", b"\xff\xfe[\x00]\x00", 400),
        ("/small", b"[NaN]", 400),
        ("/small", b"[" * 50_000, 400),
        ("/large", b"[" + b"0," * 3_999_990 + b"[],[],[],[],[],[],0]", 400),
    ],
)
def test_what_is_no_body_of_this_endpoint_is_refused(path: str, content: bytes, status: int) -> None:
    answer = asyncio.run(CountingApp().post(path, content))
    assert answer.status_code == status
    assert ("error" in answer.json()) == (status != 200)
