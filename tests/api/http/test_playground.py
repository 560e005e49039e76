"""`/ui` and the pages about the API: nothing from elsewhere, open without a key, and off where it is wanted off."""

import re

import pytest

from tests.api.live_server import LiveServer, StartServer

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_a_browser_at_the_root_is_led_to_the_page_and_a_program_is_not(server: LiveServer) -> None:
    answer = server.http.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers["location"]) == (302, "/ui")
    assert server.http.get("/", headers={"Accept": "*/*"}).text == "Ollama is running"


def test_the_page_loads_nothing_and_is_allowed_nothing_else(server: LiveServer) -> None:
    answer = server.http.get("/ui")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
    assert not re.search(r"""(?:src|href)=["'](?!data:)|https?://(?!www\.w3\.org)""", answer.text)


def test_the_page_needs_no_key_and_shows_nothing_without_one(start_server: StartServer) -> None:
    live = start_server(api_keys=("one",))
    assert live.http.get("/ui").status_code == 200
    assert live.http.get("/v1/models").status_code == 401


def test_without_the_page_the_root_is_the_sentence_for_all(start_server: StartServer) -> None:
    live = start_server(ui=False)
    assert live.http.get("/ui").status_code == 404
    assert live.http.get("/", headers=BROWSER).text == "Ollama is running"


def test_a_prefix_that_a_proxy_takes_away_stands_before_every_address(start_server: StartServer) -> None:
    live = start_server(root_path="/prefix")
    answer = live.http.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers.get("location")) == (302, "/prefix/ui"), answer.text
    for page in ("/docs", "/redoc"):
        assert '"/prefix/docs/' in live.http.get(page).text


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_pages_about_the_api_load_what_this_server_has(server: LiveServer, page: str) -> None:
    text = server.http.get(page).text
    loaded = re.findall(r"""<(?:script|link)[^>]+(?:src|href)="([^"]+)\"""", text)
    scripts = [address for address in loaded if not address.startswith("data:")]
    assert scripts
    for address in scripts:
        assert address.startswith("/docs/")
        answer = server.http.get(address)
        assert answer.status_code == 200
        assert len(answer.content) > 10_000
    assert server.http.get("/docs/other.js").status_code == 404
