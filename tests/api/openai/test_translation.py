"""Errors about a field of chat, under the names of the endpoints that make a chat request of their own body."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import jserve
from jserve.api.anthropic.request import NAMES as ANTHROPIC
from jserve.api.errors import invalid
from jserve.api.ollama.fields import NAMES as OLLAMA
from jserve.api.openai.responses_api.request import NAMES as RESPONSES
from jserve.api.openai.translation import chat_body, client_path, fields_named
from jserve.errors import ContextLengthError, FieldPath, RequestError

HI = [{"role": "user", "content": "hi"}]
PACKAGE = Path(jserve.__file__).parent
SHARED = [
    *(PACKAGE / "api" / "openai").glob("*.py"),
    *(path for folder in ("generation", "model") for path in (PACKAGE / "api" / folder).glob("*.py")),
    *(PACKAGE / "text").rglob("*.py"),
]
"""Where errors about a chat request are made, whichever endpoint it came by."""


@pytest.mark.parametrize(
    ("path", "anthropic", "responses", "ollama"),
    [
        ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_completion_tokens"),
        ("max_tokens", "max_tokens", "max_output_tokens", "options.num_predict"),
        ("min_tokens", "min_tokens", "min_tokens", "min_tokens"),
        ("stop", "stop_sequences", "stop", "stop"),
        ("stop_token_ids", "stop_token_ids", "stop_token_ids", "stop_token_ids"),
        ("messages[2].content", "messages[2].content", "input[2].content", "messages[2].content"),
        (
            "response_format.json_schema.regex",
            "output_config.format.json_schema.regex",
            "text.format.json_schema.regex",
            "format.json_schema.regex",
        ),
        ("tools", "tools", "tools", "tools"),
        ("tools[12].function", "tools[12]", "tools[12]", "tools[12].function"),
        ("tools[0].function.name", "tools[0].name", "tools[0].name", "tools[0].function.name"),
        (
            "tools[0].function.parameters",
            "tools[0].input_schema",
            "tools[0].parameters",
            "tools[0].function.parameters",
        ),
        ("tools.3.function.parameters", "tools.3.input_schema", "tools.3.parameters", "tools.3.function.parameters"),
        ("tools[].function", "tools[].function", "tools[].function", "tools[].function"),
    ],
)
def test_a_field_has_the_path_at_which_the_client_wrote_it(
    path: str, anthropic: str, responses: str, ollama: str
) -> None:
    assert client_path(path, ANTHROPIC) == anthropic
    assert client_path(path, RESPONSES) == responses
    assert client_path(path, OLLAMA) == ollama


def test_only_parts_that_are_fields_are_renamed() -> None:
    schema = "the schema's `stop`, or tools[0].function.name, at response_format"
    with pytest.raises(ContextLengthError) as caught, fields_named(ANTHROPIC):
        raise ContextLengthError(FieldPath("response_format"), f": {schema}", param="response_format.json_schema")
    assert str(caught.value) == f"output_config.format: {schema}"
    assert caught.value.param == "output_config.format.json_schema"


def test_a_param_is_plain_text_for_the_writer_of_json() -> None:
    assert type(RequestError("x", param=FieldPath("stop")).param) is str


def test_an_error_about_no_field_stays_as_it_is() -> None:
    with pytest.raises(RequestError, match=r"^the stop is near$") as caught, fields_named(ANTHROPIC):
        raise RequestError("the stop is near")
    assert caught.value.param is None


def test_a_value_is_shown_with_the_name_of_its_field() -> None:
    error = invalid(FieldPath("max_tokens"), " is 0.", param="max_tokens", value="max_tokens")
    renamed = error.renamed(lambda path: client_path(path, RESPONSES))
    assert str(error) == "max_tokens is 0. (parameter=max_tokens, value=max_tokens)"
    assert str(renamed) == "max_output_tokens is 0. (parameter=max_output_tokens, value=max_tokens)"


def test_a_value_of_the_wrong_form_is_named_as_the_client_wrote_it() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": "none"}}]
    with pytest.raises(RequestError, match=r"^tools\.0\.input_schema: Input should be") as caught:
        chat_body({"messages": HI, "tools": tools}, ANTHROPIC)
    assert caught.value.param == "tools.0.input_schema"


@pytest.mark.parametrize("path", SHARED, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_errors_name_no_field_in_plain_text_that_an_endpoint_calls_otherwise(path: Path) -> None:
    """Prose may speak of messages."""
    names = {name.removeprefix("tools[].") for name in ANTHROPIC | RESPONSES | OLLAMA} - {"messages", "function"}
    named = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, sorted(names)))})(?![\w])")
    assert not [text for text in texts_of_errors(ast.parse(path.read_text())) if named.search(text)]


def texts_of_errors(tree: ast.AST) -> Iterator[str]:
    """What the functions that raise an error about a request say in plain text; one word is a name, and no text."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and _raises(function):
            body = function.body[1:] if ast.get_docstring(function) is not None else function.body
            for node in (node for statement in body for node in ast.walk(statement)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                    yield node.value


def _raises(function: ast.AST) -> bool:
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    return not names.isdisjoint({"RequestError", "ContextLengthError", "invalid", "_refused"})
