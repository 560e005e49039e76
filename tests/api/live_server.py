"""A server in a thread of this process, in front of a fake engine in a process of its own."""

import asyncio
import contextlib
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import uvloop

from jserve.api.http.listener import listen, listen_at
from jserve.api.server import Server
from jserve.api.settings import ServerSettings
from jserve.config import EngineConfig
from tests.patience import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]
END, START, STOP = 0, 1, 2
"""<|endoftext|>, <|im_start|>, <|im_end|>; the fake engine ends at the last."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_MODEL_LEN = 256


def fake_engine(*options: str) -> tuple[str, ...]:
    """The command of a fake engine with these options."""
    return (sys.executable, "-m", "tests.fake_engine", "--vocab-size", "300", *options)


class LiveServer:
    """A server on a free port, in a thread of its own."""

    def __init__(self, settings: ServerSettings, config: EngineConfig) -> None:
        self.error: BaseException | None = None
        self._listener = listen_at(settings.uds) if settings.uds is not None else listen(settings.host, 0)
        port = 0 if settings.uds is not None else self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._settings, self._config = settings, config
        self.loop: asyncio.AbstractEventLoop
        self.server: Server
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(PATIENCE_S)
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S)
        key = settings.api_keys[0] if settings.api_keys else "none"
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)

    def _run(self, started: threading.Event) -> None:
        try:
            uvloop.run(self._serve(started))
        except BaseException as error:
            self.error = error

    async def _serve(self, started: threading.Event) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = Server(self._config, self._settings, self._listener)
        started.set()
        await self.server.run()

    def wait_until_ready(self) -> None:
        self.wait_for(lambda: self.status("/ready") == 200)

    def status(self, path: str) -> int:
        """The status of a GET, 0 where nobody listens."""
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return 0

    def wait_for(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            assert self.error is None, f"the server ended: {self.error!r}"
            return condition()

        wait_until(holds)

    def begin_stop(self) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # It has stopped by itself.
            self.begin_stop()
        self.join()
        self.http.close()
        self.openai.close()

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the server did not stop"

    @property
    def engine_pid(self) -> int | None:
        return self.server.context.client.pid

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics; 0 where it is absent."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self.http.get("/metrics").text.splitlines():
            match = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name and wanted <= set((match[2] or "").split(",")):
                return float(match[3])
        return 0.0

    def complete(self, prompt: Any, **fields: Any) -> dict[str, Any]:
        response = self.http.post("/v1/completions", json={"prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def chat(self, content: str, **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": content}]
        response = self.http.post("/v1/chat/completions", json={"messages": messages, **fields})
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def events(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream, whose framing and end are checked."""
        response = self.http.post(path, json={"stream": True, **body})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        frames = response.text.split("\n\n")
        assert frames.pop() == ""
        assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
        assert frames.pop() == "data: [DONE]"
        assert "data: [DONE]" not in frames
        return [json.loads(frame.removeprefix("data: ")) for frame in frames]


StartServer = Callable[..., LiveServer]
