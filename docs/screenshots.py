"""Makes the pictures of the page at /ui in docs/images: `python docs/screenshots.py http://localhost:8000`.

It wants a running server, Playwright (the extra `clients`) and a Chromium. The model is asked three times,
so that the plots have something to show.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
MOST_BYTES = 150_000
"""A picture that is larger slows a page and every clone."""
ANSWER_TIMEOUT_MS = 120_000


def send(page: Page, text: str) -> None:
    """Sends a message and waits until its answer has ended."""
    page.fill("#input", text)
    page.press("#input", "Enter")
    page.wait_for_selector("#send:visible", timeout=ANSWER_TIMEOUT_MS)


def save(page: Page, name: str) -> None:
    """A picture of what is seen."""
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes; at most {MOST_BYTES} are wanted")


def main() -> None:
    """The chat with an answer whose tokens are coloured by how sure the model was, and the plots of the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="a running server, http://localhost:8000")
    url = parser.parse_args().url.rstrip("/")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 700})
        watcher = browser.new_page(viewport={"width": 1100, "height": 700})
        watcher.goto(f"{url}/ui")
        watcher.click("#tab-server")
        page.goto(f"{url}/ui")
        page.wait_for_selector("#model option", state="attached", timeout=ANSWER_TIMEOUT_MS)
        page.fill("#temperature", "0")
        page.fill("#max_tokens", "80")
        page.check("#logprobs")
        send(page, "What is the capital of France?")
        send(page, "Name three things to see there.")
        save(page, "ui-chat")
        page.click("#clear")
        send(page, "Write a short story about a lighthouse.")
        watcher.bring_to_front()
        watcher.wait_for_timeout(4000)
        save(watcher, "ui-server")
        browser.close()


if __name__ == "__main__":
    main()
