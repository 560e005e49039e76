"""Before the routes are imported: the process says that it lives, and other requests wait instead of failing."""

import asyncio
import threading

import httpx
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from jserve.api.http.early_app import EarlyApp
from tests.patience import PATIENCE_S


def test_liveness_is_answered_at_once_and_the_rest_when_the_app_is_there() -> None:
    asyncio.run(_ask_before_and_after())


async def _ask_before_and_after() -> None:
    may_build = threading.Event()

    def build() -> ASGIApp:
        may_build.wait(PATIENCE_S)
        return PlainTextResponse("the app", status_code=203)

    app = EarlyApp(build)
    loading = asyncio.create_task(app.load())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://jserve") as client:
        assert [(await client.get(path)).status_code for path in ("/health", "/ping")] == [200, 200]
        other = asyncio.create_task(client.get("/version"))
        await asyncio.sleep(0.05)
        assert not other.done()
        may_build.set()
        await loading
        assert (await other).text == "the app"
        assert (await client.get("/health")).status_code == 203, "the app's own probe from now on"
