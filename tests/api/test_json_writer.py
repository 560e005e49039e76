"""The one writer of JSON: no character of a string ends a line, and nothing else in the API writes JSON."""

import ast
import json

import pytest

from jserve.api.json_writer import JsonResponse, encode
from tests.api.live_server import ROOT

LINE_ENDS = "\u2028\u2029\u0085"
API = ROOT / "jserve" / "api"
NOT_BODIES = {
    "generation/recent_items.py",
    "model/served_model.py",
    "supervisor/process.py",
    "store/batches.py",
    "openai/responses_api/memory.py",
    "anthropic/conversation.py",
    "openai/responses_api/conversation.py",
    "ollama/models.py",
    "openai/responses_api/answer.py",
}
"""Files that write JSON which is no body: a digest, a configuration, items, arguments in a string, `msgspec.Raw`."""


@pytest.mark.parametrize(
    "text", [LINE_ENDS, f"é{LINE_ENDS}", f"a{LINE_ENDS}\U0001f600", "\u2027\u202a\u0084\u0086", "plain"]
)
def test_a_body_is_one_line_and_reads_the_same(text: str) -> None:
    body = encode({text: [text]})
    assert len(body.decode().splitlines()) == 1
    assert json.loads(body) == {text: [text]}
    assert JsonResponse(text).body == encode(text)


def test_other_characters_stay_as_they_are() -> None:
    assert encode("é\u2027\U0001f600") == '"é\u2027\U0001f600"'.encode()


def test_nothing_else_in_the_api_writes_json() -> None:
    writers = {"JSONResponse", "json.dumps", "json.encode", "to_json"}
    for path in sorted(API.rglob("*.py")):
        used = {name for node in ast.walk(ast.parse(path.read_text())) for name in writers if _names(node, name)}
        allowed = path.name == "json_writer.py" or str(path.relative_to(API)) in NOT_BODIES
        assert allowed or not used, f"{path} writes JSON by {used}; use jserve.api.json_writer"


def _names(node: ast.AST, name: str) -> bool:
    if not isinstance(node, ast.Name | ast.Attribute):
        return False
    return ast.unparse(node).endswith(name)
