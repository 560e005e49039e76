"""The page at `/ui` in a real Chromium, on a telephone and on a desk: it streams, stops, and tells what is refused."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.conftest import _importable_from_subprocesses, make_server, model_dir, start_server, tokenizer
from tests.api.live_server import LiveServer, StartServer
from tests.patience import PATIENCE_S

__all__ = ["_importable_from_subprocesses", "make_server", "model_dir", "start_server", "tokenizer"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]
WIDTHS = {"telephone": (360, 740), "desk": (1440, 900)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=list(WIDTHS))
def open_page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Opens the page of a server; what goes wrong in it fails the test."""
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda failed: problems.append(failed.url) if "/v1/chat" not in failed.url else None)

    def open_(live: LiveServer) -> Any:
        page.goto(f"{live.url}/")
        assert page.url == f"{live.url}/ui"
        return page

    yield open_
    assert problems == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out at the side"
    context.close()


def send(page: Any, text: str) -> None:
    page.fill("#input", text)
    page.press("#input", "Enter")


def unfold(page: Any) -> None:
    if not page.evaluate("document.querySelector('#settings details').open"):
        page.click("#settings summary")


def test_an_answer_streams_and_is_part_of_the_next_request(open_page: Any, start_server: StartServer) -> None:
    page = open_page(start_server())
    page.wait_for_selector("#model option", state="attached")
    send(page, "hello")
    page.wait_for_selector(".figures:has-text('tokens')")
    page.wait_for_selector("#send:visible")
    with page.expect_request("**/v1/chat/completions") as sent:
        send(page, "and <b>now</b>?")
    roles = [message["role"] for message in sent.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"]
    page.wait_for_selector("#send:visible")
    assert page.locator(".user").nth(1).inner_text() == "and <b>now</b>?"
    assert page.locator(".user b").count() == 0


def test_an_answer_is_stopped_and_the_server_knows(open_page: Any, start_server: StartServer) -> None:
    live = start_server("--step-ms", "50", "--eos", "299")
    page = open_page(live)
    send(page, "count")
    page.wait_for_selector(".figures:has-text('tokens')")
    page.click("#stop")
    page.wait_for_selector(".figures:has-text('stopped')")
    live.wait_for(lambda: live.metric("vllm:num_requests_running") == 0)
    assert page.locator(".problem").count() == 0


def test_a_key_that_is_wanted_is_told_and_then_taken(open_page: Any, start_server: StartServer) -> None:
    page = open_page(start_server(api_keys=("secret",)))
    page.wait_for_selector(".problem:has-text('wants an API key')")
    unfold(page)
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    page.wait_for_selector("#model option", state="attached")
    send(page, "hello")
    page.wait_for_selector(".figures:has-text('tokens')")


def test_a_limit_is_told_as_a_sentence(open_page: Any, start_server: StartServer) -> None:
    page = open_page(start_server())
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=429, headers={"Retry-After": "7"}, json={"error": {"message": "60 requests a minute are used up."}}
        ),
    )
    send(page, "hello")
    page.wait_for_selector(".problem:has-text('Too much at once for this key; try again in 7 s. 60 requests a minute')")


def test_settings_reach_the_request_and_bad_ones_are_told_before(open_page: Any, start_server: StartServer) -> None:
    page = open_page(start_server())
    unfold(page)
    page.fill("#system", "Be brief.")
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "5")
    page.check("#logprobs")
    page.fill("#schema", "{oops")
    send(page, "hello")
    page.wait_for_selector(".problem:has-text('The JSON schema under Settings')")
    page.fill("#schema", "")
    with page.expect_request("**/v1/chat/completions") as sent:
        send(page, "hello")
    body = sent.value.post_data_json
    assert (body["temperature"], body["max_tokens"], body["top_logprobs"]) == (0, 5, 5)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    page.wait_for_selector(".text span[title]")


def test_the_server_page_shows_figures(open_page: Any, start_server: StartServer) -> None:
    live = start_server()
    page = open_page(live)
    live.complete("hello", max_tokens=20)
    page.click("#tab-server")
    page.wait_for_selector("#state:has-text('Ready')")
    assert page.locator(".plot").count() == 5
    page.wait_for_selector(".plot:has-text('running 0')")
