"""Who may ask a viewer, and what its answers let a browser do."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from segmint.pipeline.quality.view.app import SessionKeys, ViewerGuard

PORT = 8123
COOKIE = f"segmint-view-{PORT}"


@pytest.fixture
def access() -> SessionKeys:
    """A viewer's, with a key that was not used."""
    return SessionKeys(PORT)


@pytest.fixture
def address(access: SessionKeys) -> str:
    """The address with the key."""
    return access.address()


@pytest.fixture
def client(access: SessionKeys) -> TestClient:
    """A browser that has no key yet."""
    return browser(access)


def browser(access: SessionKeys) -> TestClient:
    routes = [Route("/", lambda _: PlainTextResponse("inside")), Route("/x", lambda _: PlainTextResponse("inside"))]
    guarded = Starlette(routes=routes, middleware=[Middleware(ViewerGuard, access=access)])
    return TestClient(guarded, base_url=f"http://127.0.0.1:{PORT}", follow_redirects=False)


def session_of(access: SessionKeys) -> str:
    access.address()
    session = access.enter(access.address().rpartition("=")[2])
    assert session is not None
    return session


def test_the_key_comes_once_and_becomes_a_cookie(client: TestClient, address: str) -> None:
    entered = client.get(address)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"].lower()
    assert cookie.startswith(f"{COOKIE}=")
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip() for part in cookie.split(";")}
    assert address.rpartition("=")[2] not in entered.headers["set-cookie"]
    assert client.get("/").text == "inside"
    assert client.get("/x").text == "inside"
    assert client.head("/x").status_code == 200


def test_an_address_opens_one_browser(client: TestClient, address: str, access: SessionKeys) -> None:
    other = browser(access)
    assert other.head(address).status_code == 403  # a preview does not use it up
    assert client.get(address).status_code == 303
    for _ in range(2):
        refused = other.get(address)
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
        assert "<h1>This address was used before</h1>" in refused.text
        assert "start it again" in refused.text
    assert other.get("/x").status_code == 403
    again = client.get(address)  # the browser that it opened goes on
    assert (again.status_code, "set-cookie" in again.headers) == (303, False)
    assert client.get("/x").text == "inside"


def test_a_new_address_opens_one_more_and_voids_the_one_before(access: SessionKeys, address: str) -> None:
    first, second, third = (browser(access) for _ in range(3))
    assert first.get(access.address()).status_code == 303
    assert second.get(address).status_code == 403  # never used, and void
    waiting = access.address()
    assert second.get(waiting).status_code == 303
    assert third.get(waiting).status_code == 403
    assert (first.get("/x").text, second.get("/x").text) == ("inside", "inside")
    assert first.cookies[COOKIE] != second.cookies[COOKIE]


def test_threads_that_race_for_a_key_get_one_session(access: SessionKeys) -> None:
    for _ in range(20):
        key = access.address().rpartition("=")[2]
        with ThreadPoolExecutor(8) as threads:
            assert sum(found is not None for found in threads.map(access.enter, [key] * 8)) == 1


@pytest.mark.parametrize("path", ["/", "/x", "/nowhere", "/?key=", "/?key=ü", "/?key={part}", "/x?key={key}"])
def test_without_the_key_there_is_nothing(client: TestClient, access: SessionKeys, address: str, path: str) -> None:
    key = address.rpartition("=")[2]
    for cookies in ({}, {COOKIE: "x"}, {COOKIE: key}, {"segmint-view-1": session_of(access)}):
        key = access.address().rpartition("=")[2]
        client.cookies = cookies
        answer = client.get(path.format(key=key, part=key[:-1]))
        assert answer.status_code == 403
        assert "inside" not in answer.text
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80", f"127.0.0.1.evil.example:{PORT}", ""]
)
def test_other_hosts_are_refused_even_with_the_key(client: TestClient, access: SessionKeys, host: str) -> None:
    client.cookies = {COOKIE: session_of(access)}
    assert client.get("/x", headers={"host": f"localhost:{PORT}"}).status_code == 200
    address = access.address()
    for path in ("/x", f"/{address.rpartition('/')[2]}"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "set-cookie" not in answer.headers
    assert "set-cookie" in client.get(address).headers  # the key was not used up


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_answers_reads(client: TestClient, access: SessionKeys, method: str) -> None:
    client.cookies = {COOKIE: session_of(access)}
    assert client.request(method, "/x").status_code == 405


def test_every_answer_holds_the_browser_to_its_own(client: TestClient, access: SessionKeys) -> None:
    client.cookies = {COOKIE: session_of(access)}
    answers = [client.get("/x"), client.get("/nowhere"), client.get("/x", headers={"host": "evil"})]
    client.cookies = {}
    answers += [client.get("/"), client.get("/?key=other"), client.get(access.address())]
    assert [answer.status_code for answer in answers] == [200, 404, 421, 403, 403, 303]
    for answer in answers:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_keys_are_long_and_never_the_same(access: SessionKeys) -> None:
    keys = {access.address().rpartition("=")[2] for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) >= 43 for key in keys)
