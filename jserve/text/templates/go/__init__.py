"""Ollama's chat templates, written in Go's text/template, translated to Jinja.

`parse` makes nodes of the source, `translate` writes them as Jinja that gives the same prompt. What has no
translation is refused by name; nothing is rendered approximately.
"""

from jserve.text.templates.go.nodes import GoTemplateError
from jserve.text.templates.go.translate import looks_like_go, translate, with_bos

__all__ = ["GoTemplateError", "looks_like_go", "translate", "with_bos"]
