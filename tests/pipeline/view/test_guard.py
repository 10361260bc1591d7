"""Who may ask a viewer, and what its answers let a browser do."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from segmint.pipeline.view.guard import Guard, address, new_key

KEY = new_key()
PORT = 8123
COOKIE = f"segmint-view-{PORT}"


@pytest.fixture
def client() -> TestClient:
    """A browser that has no key yet."""
    routes = [Route("/", lambda _: PlainTextResponse("inside")), Route("/x", lambda _: PlainTextResponse("inside"))]
    guarded = Starlette(routes=routes, middleware=[Middleware(Guard, key=KEY, port=PORT)])
    return TestClient(guarded, base_url=f"http://127.0.0.1:{PORT}", follow_redirects=False)


def test_the_key_comes_once_and_becomes_a_cookie(client: TestClient) -> None:
    entered = client.get(address(PORT, KEY))
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"].lower()
    assert cookie.startswith(f"{COOKIE}=")
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip() for part in cookie.split(";")}
    assert client.get("/").text == "inside"
    assert client.get("/x").text == "inside"
    assert client.head("/x").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/x", "/nowhere", "/?key=", "/?key=ü"),
        pytest.param(f"/?key={KEY[:-1]}", id="part of the key"),  # another one in each process
        pytest.param(f"/x?key={KEY}", id="key of another page"),
    ],
)
def test_without_the_key_there_is_nothing(client: TestClient, path: str) -> None:
    for cookies in ({}, {COOKIE: "x"}, {"segmint-view-1": KEY}):
        client.cookies = cookies
        answer = client.get(path)
        assert answer.status_code == 403
        assert "inside" not in answer.text
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80", f"127.0.0.1.evil.example:{PORT}", ""]
)
def test_other_hosts_are_refused_even_with_the_key(client: TestClient, host: str) -> None:
    client.cookies = {COOKIE: KEY}
    assert client.get("/x", headers={"host": f"localhost:{PORT}"}).status_code == 200
    for path in ("/x", f"/?key={KEY}"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_answers_reads(client: TestClient, method: str) -> None:
    client.cookies = {COOKIE: KEY}
    assert client.request(method, "/x").status_code == 405


def test_every_answer_holds_the_browser_to_its_own(client: TestClient) -> None:
    client.cookies = {COOKIE: KEY}
    answers = [client.get("/x"), client.get("/nowhere"), client.get("/x", headers={"host": "evil"})]
    client.cookies = {}
    answers += [client.get("/"), client.get(f"/?key={KEY}")]
    assert [answer.status_code for answer in answers] == [200, 404, 421, 403, 303]
    for answer in answers:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_keys_are_long_and_never_the_same() -> None:
    assert len({new_key() for _ in range(100)}) == 100
    assert all(len(new_key()) >= 43 for _ in range(10))
