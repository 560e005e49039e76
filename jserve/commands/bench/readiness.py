"""Waits until servers answer, and asks them for their models."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

LOADING = 503  # what servers answer while the model is not there yet


def wait_for_models(url: str, api_key: str | None, wait_s: float) -> list[str]:
    """The ids of /v1/models, asked until the server answers or `wait_s` seconds have passed."""
    request = urllib.request.Request(f"{url}/v1/models")
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    give_up = time.monotonic() + wait_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return [entry["id"] for entry in json.load(response).get("data", [])]
        except urllib.error.HTTPError as error:
            if error.code != LOADING:
                return []  # it is up, but lists nothing
            failure: OSError = error
        except OSError as error:
            failure = error
        if time.monotonic() >= give_up:
            hint = "" if wait_s else "; --wait S waits for it"
            raise ConnectionError(f"{url} does not answer /v1/models: {failure}{hint}") from failure
        time.sleep(0.5)


def wait_for_token(url: str, api_key: str | None, model: str, wait_s: float) -> None:
    """Ask for a token until the server no longer says that it is loading: some list their model before they can."""
    body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    give_up = time.monotonic() + wait_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60):
                return
        except urllib.error.HTTPError as error:
            if error.code != LOADING:
                return  # it answers; the first request of the run will say what it does not like
            if time.monotonic() >= give_up:
                raise ConnectionError(f"{url} is still loading after {wait_s:.0f} s: {error}") from error
        time.sleep(0.5)


def first_model(name: str, url: str, listed: Sequence[str]) -> str:
    """The model to ask for when none was given."""
    if not listed:
        raise ValueError(f"{url} lists no model; give it: --model {name}=ID")
    return listed[0]
