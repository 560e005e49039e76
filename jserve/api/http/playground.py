"""`/ui`: a page to talk to the model and to watch the server, in one file that comes with the package.

It loads nothing from anywhere else, and its policy forbids it to: scripts and styles are those whose digests stand in
the header, and it speaks to this server alone. It carries no key; what it fetches is answered by routes that want one.
"""

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import Scope

from jserve.api.context import context_of
from jserve.api.http.route_paths import route_path

PATH = "/ui"
_FILE = Path(__file__).with_name("playground.html")


async def playground(request: Request) -> Response:
    """The page."""
    body, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(body, media_type="text/html; charset=utf-8", headers=headers)


async def root(request: Request) -> Response:
    """What stands at `/`: the page for a browser; for programs the sentence by which they know Ollama."""
    if context_of(request).settings.ui and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"{request.scope.get('root_path', '')}{PATH}", status_code=302)
    return PlainTextResponse("Ollama is running")


def is_browser_at_root(scope: Scope) -> bool:
    """Whether this is a person who has typed the server's address, who must come to the page to enter a key there."""
    accept = dict(scope["headers"]).get(b"accept", b"")
    return route_path(scope) == "/" and scope["method"] in ("GET", "HEAD") and b"text/html" in accept


@lru_cache(maxsize=1)
def _page() -> tuple[bytes, str]:
    """The file, and the policy that lets a browser run just what stands in it."""
    text = _FILE.read_text("utf-8")
    script, style = (_digest(text, tag) for tag in ("script", "style"))
    # Colours of tokens and widths of fields are set by the script, attribute by attribute.
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; style-src-attr 'unsafe-inline'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def _digest(text: str, tag: str) -> str:
    inner = re.search(rf"<{tag}>(.*)</{tag}>", text, re.DOTALL)
    assert inner is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner[1].encode()).digest()).decode()}'"
