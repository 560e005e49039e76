"""For mkdocs: links of a page that lead out of docs/ become links into the repository."""

import re
from typing import Any

_BLOB, _RAW = "https://github.com/jserve/jserve/blob/main/", "https://raw.githubusercontent.com/jserve/jserve/main/"
_OUTSIDE = re.compile(r"(!?\[[^\]]*\])\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with such links replaced."""
    return _OUTSIDE.sub(lambda link: f"{link[1]}({_RAW if link[1][0] == '!' else _BLOB}{link[2]})", markdown)
