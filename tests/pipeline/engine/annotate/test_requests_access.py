"""Who may ask an annotators' server, and who may write to it."""

from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from segmint.catalogs.dataset.submissions import check_name
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.requests import Team, TeamGuard, parse_origin

PORT = 8765
HERE = f"http://127.0.0.1:{PORT}"
WRITE = {"x-segmint": "1", "origin": HERE}


def inside(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"inside as {request.state.annotator}")


def browser(team: Team, base_url: str = HERE) -> TestClient:
    routes = [Route(path, inside, methods=["GET", "POST", "PUT", "DELETE"]) for path in ("/", "/x")]
    app = Starlette(routes=routes, middleware=[Middleware(TeamGuard, team=team)])
    return TestClient(app, base_url=base_url, follow_redirects=False)


def entered(team: Team, name: str, base_url: str = HERE) -> TestClient:
    client = browser(team, base_url)
    assert client.get(f"{base_url}/{team.address(name).rpartition('/')[2]}").status_code == 303
    client.headers["x-segmint-annotator"] = quote(name)
    return client


@pytest.fixture
def team() -> Team:
    """Two annotators; Ann has started the server."""
    return Team(PORT, ["Ann", "Bob"])


def test_a_session_is_one_annotators(team: Team) -> None:
    ann, bob = entered(team, "Ann"), entered(team, "Bob")
    assert (ann.get("/x").text, bob.get("/x").text) == ("inside as Ann", "inside as Bob")
    assert ann.post("/x", headers=WRITE).text == "inside as Ann"
    cookies = {name: client.cookies[f"segmint-annotate-{PORT}"] for name, client in (("Ann", ann), ("Bob", bob))}
    assert cookies["Ann"] != cookies["Bob"]
    header = browser(team).get(team.address("Ann")).headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip() for part in header.split(";")}
    assert "secure" not in header


def test_an_address_opens_one_browser(team: Team) -> None:
    address = team.address("Ann")
    first, second = browser(team), browser(team)
    assert second.head(address).status_code == 403
    assert first.get(address).status_code == 303
    assert second.get(address).status_code == 403
    assert "used before" in second.get(address).text
    void = team.address("Bob")
    assert second.get(team.address("Bob")).status_code == 303
    assert browser(team).get(void).status_code == 403
    assert first.get("/x").text == "inside as Ann"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("cookie", [None, "x", "key", "other port"])
def test_without_a_session_there_is_nothing(team: Team, method: str, cookie: str | None) -> None:
    key = team.address("Ann").rpartition("=")[2]
    session = entered(team, "Bob").cookies[f"segmint-annotate-{PORT}"]
    client = browser(team)
    if cookie == "other port":
        client.cookies = {f"segmint-annotate-{PORT + 1}": session, f"segmint-view-{PORT}": session}
    elif cookie is not None:
        client.cookies = {f"segmint-annotate-{PORT}": key if cookie == "key" else cookie}
    answer = client.request(method, "/x", headers=WRITE)
    assert answer.status_code == 403
    assert "inside" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-segmint": "1"},
        {"origin": HERE},
        {"x-segmint": "0", "origin": HERE},
        {"x-segmint": "1", "origin": "null"},
        {"x-segmint": "1", "origin": "https://evil.example"},
        {"x-segmint": "1", "origin": f"https://127.0.0.1:{PORT}"},
        {"x-segmint": "1", "origin": f"http://127.0.0.1:{PORT + 1}"},
        {"x-segmint": "1", "origin": f"{HERE}.evil.example"},
        {"x-segmint": "1", "origin": HERE, "sec-fetch-site": "cross-site"},
        {"x-segmint": "1", "origin": HERE, "sec-fetch-site": "same-site"},
    ],
)
def test_a_write_needs_its_header_and_an_origin_of_the_server(team: Team, method: str, headers: dict[str, str]) -> None:
    ann = entered(team, "Ann")
    assert ann.request(method, "/x", headers=headers).status_code == 403
    assert ann.request(method, "/x", headers={**WRITE, "sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_page_writes_only_as_whom_it_was_opened(team: Team, method: str) -> None:
    name = "Zoë /%41\u200c 李"
    shared = entered(team, "Ann")
    assert shared.get(team.address(name)).status_code == 303  # in the same browser
    pages = {who: {**WRITE, "x-segmint-annotator": quote(who)} for who in ("Ann", name)}
    refused = shared.request(method, "/x", headers=pages["Ann"])
    assert (refused.status_code, refused.json()["annotator"]) == (403, name)
    assert shared.get("/x", headers=pages["Ann"]).status_code == 403
    assert shared.request(method, "/x", headers=pages[name]).text == f"inside as {name}"
    for odd in ("", "ann", "Ann%00", quote(name) + "%ff", "Zo\xeb"):
        assert shared.request(method, "/x", headers={**WRITE, "x-segmint-annotator": odd.encode("latin-1")}).is_error
    del shared.headers["x-segmint-annotator"]
    assert shared.request(method, "/x", headers=WRITE).status_code == 403
    assert shared.get("/x").text == f"inside as {name}"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", f"127.0.0.1.evil.example:{PORT}", ""])
def test_other_hosts_are_refused(team: Team, host: str) -> None:
    ann = entered(team, "Ann")
    assert ann.get("/x", headers={"host": host}).status_code == 421
    assert ann.get("/x", headers={"host": f"localhost:{PORT}"}).status_code == 200


def test_a_proxys_origin_is_one_of_the_servers() -> None:
    team = Team(PORT, ["Ann"], parse_origin("https://annotate.example.org"))
    assert team.address("Ann").startswith("https://annotate.example.org/?key=")
    ann = entered(team, "Ann", "https://annotate.example.org")
    headers = {"x-segmint": "1", "origin": "https://annotate.example.org"}
    assert ann.post("/x", headers=headers).status_code == 200
    assert ann.post("/x", headers={**headers, "origin": "https://example.org"}).status_code == 403
    public = browser(team, "https://annotate.example.org").get(team.address("Ann"))
    assert "secure" in public.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("text", "origin", "host"),
    [
        ("https://a.example", "https://a.example", "a.example"),
        ("https://A.example:443/", "https://a.example", "a.example"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000", "127.0.0.1:9000"),
        ("http://[::1]:9000", "http://[::1]:9000", "[::1]:9000"),
    ],
)
def test_origins_are_parsed(text: str, origin: str, host: str) -> None:
    assert (parse_origin(text).text, parse_origin(text).host) == (origin, host)


@pytest.mark.parametrize(
    "text", ["a.example", "ftp://a.example", "https://", "https://a.example/x", "https://u@a.example", "http://a:x"]
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--origin"):
        parse_origin(text)


@pytest.mark.parametrize(
    "name", ["", "  ", "a\nb", "a\x1bb", "x" * 101, "\ud800", "Ann\u202enna", "a\u2066b", "a\u200bb"]
)
def test_names_that_answers_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="can't be used"):
        check_name(name)
