"""Downloads for `collect`: only https, only public addresses, only the host that was asked, and whole files."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from segmint.infra.https import Downloader, is_public
from tests.support.https_server import HOST, Answer, HttpsServer, https_server


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsServer]:
    with https_server(tmp_path_factory.mktemp("https")) as server:
        yield server


@pytest.fixture
def server(module_server: HttpsServer) -> HttpsServer:
    module_server.answers.clear()
    module_server.requests.clear()
    module_server.most_at_once, module_server.hold_s = 0, 0.0
    return module_server


def test_a_file_is_downloaded_whole(server: HttpsServer) -> None:
    body = bytes(range(256)) * 9000
    server.answers = {"/a/%C3%A5%20b.jpg?x=1": Answer(body), "/ends.jpg": Answer(body, length=-1)}
    load = server.downloader(max_bytes=len(body))
    assert load.get(server.url("/a/å b.jpg?x=1")).data == body
    assert load.get(server.url("/a/%C3%A5%20b.jpg?x=1")).data == body
    assert load.get(server.url("/a/%C3%A5%20b.jpg?x=1", "127.0.0.1")).data == body
    # Its end isn't marked by a length, and Python's server doesn't end the connection as TLS says: it may be cut off.
    assert load.get(server.url("/ends.jpg")).why.startswith("no complete response")


@pytest.mark.parametrize(
    ("answer", "why", "requests"),
    [
        (Answer(status=404), "status 404", 1),
        (Answer(status=503), "status 503", 3),
        (Answer(b"x" * 101), "over 100 bytes", 1),
        (Answer(b""), "an empty response", 1),
        (Answer(b"x", length=2), "no complete response (SSLEOFError)", 3),
        (Answer(b"x", length=2, says_end=True), "no complete response (IncompleteRead)", 3),
        (Answer(b"x", length=-1, says_end=True), "", 1),
        (Answer(b"x", headers={"Content-Encoding": "gzip"}), "an encoded response", 1),
        (Answer(b"x", headers={"Content-Encoding": "identity,gzip"}), "an encoded response", 1),
        (Answer(b"x", headers={"Transfer-Encoding": "gzip, chunked"}), "an encoded response", 1),
        (Answer(b"1\r\nx\r\n0\r\n\r\n", headers={"Transfer-Encoding": "chunked"}, length=-1), "", 1),
        (
            Answer(b"-1\r\n" + b"x" * 50, headers={"Transfer-Encoding": "chunked"}, length=-1),
            "no complete response (HTTPException)",  # and not everything that follows, which may not fit into memory
            3,
        ),
        (Answer(b"x", headers={"no name": "", "X-Robots-Tag": "noai"}), "malformed headers", 1),
        (Answer(b"x", failures=2), "", 3),
    ],
)
def test_what_is_not_a_whole_file_says_why(server: HttpsServer, answer: Answer, why: str, requests: int) -> None:
    server.answers["/a.jpg"] = answer
    found = server.downloader(max_bytes=100).get(server.url("/a.jpg"))
    assert (found.data, found.why) == (None if why else b"x", why)
    assert found.passing == (requests == 3 and bool(why))
    assert server.requests["/a.jpg"] == requests


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://photos.example/a.jpg", "not an https URL"),
        ("s3://bucket/a.jpg", "not an https URL"),
        ("a.jpg", "not an https URL"),
        ("https://user:secret@photos.example/a.jpg", "its URL contains a user name or password"),
        ("https://photos.example:secret/a.jpg", "its URL isn't valid"),
        ("https:///a.jpg", "its URL has no host"),
        ("https://photos.example:99999/a.jpg", "its URL isn't valid"),
        ("https://[::1/a.jpg", "its URL isn't valid"),
        (f"https://{'a' * 64}.example/a.jpg", "its URL isn't valid"),
        ("https://\u2024example/a.jpg", "its URL isn't valid"),  # IDNA turns it into .example
    ],
)
def test_other_urls_are_refused_without_a_request(url: str, why: str) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise AssertionError(host)

    found = Downloader(100, 4, resolve_host=resolve).get(url)
    assert (found.data, found.passing) == (None, False)
    assert why in found.why
    assert "secret" not in found.why


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("192.0.0.192", False),
        ("168.63.129.16", False),
        ("3fff::1", False),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fd00::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.216.34", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        ("2001:0:a00:1::", False),
    ],
)
def test_only_addresses_of_the_public_internet_count(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_no_private_address_is_connected_to(server: HttpsServer) -> None:
    """The real check and the real resolver: names and numbers of this machine are refused."""
    server.answers["/a.jpg"] = Answer(b"x")
    load = Downloader(100, 4, context=server.context)
    for host in ("localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::1]", "0.0.0.0"):
        assert load.get(server.url("/a.jpg", host)).why in ("its host has no public address", "its host has no address")
    assert not server.requests


def test_the_address_that_was_checked_is_the_one_that_is_used(
    server: HttpsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to a private address the second time gains nothing, because it is resolved only once.

    Nor does a proxy, which would resolve it again.
    """
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    answers = iter([["192.0.2.1", "127.0.0.1"], ["10.0.0.1"]])
    server.answers["/a.jpg"] = Answer(b"x")
    load = server.downloader(resolve_host=lambda host, port: next(answers))
    assert load.get(server.url("/a.jpg")).data == b"x"
    assert load.get(server.url("/a.jpg")).why == "its host has no public address"


def test_redirects_stay_on_their_host(server: HttpsServer) -> None:
    def to(place: str) -> Answer:
        return Answer(status=302, headers={"Location": place})

    server.answers = {
        "/here": to("/there?x=1"),
        "/there?x=1": to(server.url("/a.jpg")),
        "/a.jpg": Answer(b"x"),
        "/loop": to("loop"),
        "/other": to(server.url("/a.jpg", f"cdn.{HOST}")),
        "/port": to(f"https://{HOST}:1/a.jpg"),
        "/plain": to(f"http://{HOST}/a.jpg"),
        "/private": to("https://169.254.169.254/"),
        "/nowhere": Answer(status=302),
        "/broken": to("//["),
    }
    load = server.downloader()
    assert load.get(server.url("/here")).data == b"x"
    for path, why in (
        ("/loop", "more than 5 redirects"),
        ("/other", "a redirect to another host"),
        ("/port", "a redirect to another host"),
        ("/plain", "not an https URL"),
        ("/private", "a redirect to another host"),
        ("/nowhere", "more than 5 redirects"),
        ("/broken", "a redirect to an invalid URL"),
    ):
        assert load.get(server.url(path)).why == why
    assert server.requests["/loop"] == 6


@pytest.mark.parametrize(
    ("headers", "opted_out"),
    [
        ({"X-Robots-Tag": "noai"}, True),
        ({"X-Robots-Tag": "max-snippet:5, NoImageAI"}, True),
        ({"X-Robots-Tag": "somebot: noindex"}, True),
        ({"X-Robots-Tag": "nofollow"}, False),
        ({"Content-Usage": "search=y, Train-AI=n"}, True),
        ({"Content-Usage": "train-ai=y, bots=n"}, False),
        ({"tdm-reservation": " 1 ", "tdm-policy": "https://photos.example/policy.json"}, True),
        ({"tdm-reservation": "0"}, False),
        ({"tdm-reservation": "0, 1"}, True),  # joined by a proxy
        ({"tdm-reservation": '"1"'}, True),
        ({"X-Robots-Tag": "nofollow; noai"}, True),
    ],
)
@pytest.mark.parametrize("status", [200, 302])
def test_opt_outs_in_headers_are_found_and_nothing_is_read(
    server: HttpsServer, headers: dict[str, str], opted_out: bool, status: int
) -> None:
    server.answers = {"/b.jpg": Answer(b"x")}
    server.answers["/a.jpg"] = Answer(b"x", status, headers | ({"Location": "/b.jpg"} if status == 302 else {}))
    found = server.downloader().get(server.url("/a.jpg"))
    assert (found.opted_out, found.data) == (opted_out, None if opted_out else b"x")
    assert server.requests["/b.jpg"] == (status == 302 and not opted_out)


def test_a_host_gets_few_connections_at_once(server: HttpsServer) -> None:
    server.hold_s = 0.02
    server.answers["/a.jpg"] = Answer(b"x")
    load = server.downloader(per_host=2)
    found: list[bytes | None] = []
    threads = [threading.Thread(target=lambda: found.append(load.get(server.url("/a.jpg")).data)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, server.most_at_once) == ([b"x"] * 8, 2)


def test_a_certificate_of_nobody_known_is_refused(server: HttpsServer, tmp_path: Path) -> None:
    with https_server(tmp_path) as other:
        found = other.downloader(context=server.context).get(other.url("/a.jpg"))
    assert (found.why, found.passing) == ("the server's certificate isn't valid", True)
    found = server.downloader().get(server.url("/a.jpg", "elsewhere.example"))
    assert found.why == "the server's certificate isn't valid"


def test_a_server_that_is_gone_is_a_passing_fault(server: HttpsServer, tmp_path: Path) -> None:
    with https_server(tmp_path) as other:
        load = other.downloader()
    found = load.get(other.url("/a.jpg"))
    assert (found.why, found.passing) == ("no complete response (ConnectionRefusedError)", True)
