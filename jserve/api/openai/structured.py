"""The fields that ask for a form of output, in all their spellings, as one `StructuredOutput`."""

from collections.abc import Mapping
from typing import Any

import msgspec

from jserve.api.context import ServerContext
from jserve.api.openai.bodies import GenerationBody, ResponseFormat
from jserve.errors import FieldPath, RequestError
from jserve.protocol import SamplingParams
from jserve.text.grammars.grammar_worker import Reasoning
from jserve.text.grammars.structured import Kind, StructuredOutput

_KINDS: tuple[Kind, ...] = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_MAX_GRAMMAR_TEXT = 64 << 20
_FORMS = frozenset({
    "schema", "json_schema", "json", "regex", "pattern", "grammar", "ebnf", "lark", "gbnf", "choice", "choices", "enum",
    "structural_tag", "json_object", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
})  # fmt: skip
"""Words that ask for a form of output somewhere, in some engine."""
_GUIDED: dict[str, Kind] = {f"guided_{kind}": kind for kind in _KINDS if kind != "structural_tag"}


async def constrain(
    server: ServerContext, body: GenerationBody, sampling: SamplingParams, reasoning: Reasoning | None = None
) -> SamplingParams:
    """`sampling`, held to the form that `body` asks for, if it does; with `reasoning`, only after that has ended.

    The grammar is known to compile. Raises RequestError that names the field.
    """
    spec = structured_output(body)
    if spec is None:
        return sampling
    verdict = await server.grammars.compile(spec, reasoning)
    return with_grammar(sampling, verdict.grammar, verdict.num_bytes)


def with_grammar(sampling: SamplingParams, grammar: str, num_bytes: int) -> SamplingParams:
    """`sampling` under a grammar. Raises RequestError where it goes to too many choices: each carries its text."""
    total = sampling.n * len(grammar)
    if total > _MAX_GRAMMAR_TEXT:
        raise RequestError(
            f"n={sampling.n} times a grammar of {len(grammar):,} characters is more than {_MAX_GRAMMAR_TEXT:,}; "
            "ask for fewer choices at once",
            param="n",
        )
    return msgspec.structs.replace(sampling, grammar=grammar, grammar_bytes=num_bytes)


def structured_output(body: GenerationBody) -> StructuredOutput | None:
    """What `body` asks for, None for free text. Raises RequestError where it asks for several things, or for none."""
    specs = [spec for spec in (_of_response_format(body), _of_structured_outputs(body), _of_guided(body)) if spec]
    if len(specs) > 1:
        fields = [part for spec in specs for part in (" and ", FieldPath(spec.field))][1:]
        raise RequestError(*fields, " were given together; ask for one form of output", param=specs[1].field)
    return specs[0] if specs else None


def _of_response_format(body: GenerationBody) -> StructuredOutput | None:
    response_format = body.response_format
    if response_format is None:
        return None
    field = "response_format"
    extra = response_format.model_extra or {}
    if response_format.type == "text":
        refuse_unread_forms({**extra, "json_schema": response_format.json_schema}, field, response_format.type)
        return None
    if response_format.type == "json_object":
        schema = extra.get("schema")  # As llama.cpp has it.
        refuse_unread_forms(
            {**extra, "json_schema": response_format.json_schema}, field, response_format.type, read=("schema",)
        )
        return StructuredOutput("json_object" if schema is None else "json", schema, field=field)
    if response_format.type == "json_schema":
        read = ("schema",) if response_format.json_schema is None else ()
        refuse_unread_forms(extra, field, response_format.type, read=read)
        if response_format.json_schema is not None:
            refuse_unread_forms(
                response_format.json_schema.model_extra or {}, f"{field}.json_schema", response_format.type
            )
        return StructuredOutput("json", _schema_of(response_format), field=field)
    tag = response_format.model_dump(exclude={"type", "json_schema"}, exclude_none=True)
    return StructuredOutput("structural_tag", tag, field=field)


def refuse_unread_forms(fields: Mapping[str, Any], where: str, kind: str, read: tuple[str, ...] = ()) -> None:
    """Raise RequestError where `fields`, in the object at `where`, ask for a form that its `kind` does not read.

    The answer would look as if it followed it.
    """
    for name, value in fields.items():
        if name in _FORMS and name not in read and value is not None:
            why = f" has `{name}`, which {kind!r} does not read; ask in one of the documented ways"
            raise RequestError(FieldPath(where), why, param=f"{where}.{name}")


def _schema_of(response_format: ResponseFormat) -> Any:
    if (
        response_format.json_schema is None
        and (schema := (response_format.model_extra or {}).get("schema")) is not None
    ):
        return schema
    if response_format.json_schema is None:
        raise RequestError(
            "When ",
            FieldPath("response_format"),
            " type is 'json_schema', the 'json_schema' field must be provided.",
            param="response_format",
        )
    if response_format.json_schema.schema_ is None:
        where = FieldPath("response_format.json_schema")
        raise RequestError(where, " needs `schema`, a JSON schema", param="response_format")
    return response_format.json_schema.schema_


def _of_structured_outputs(body: GenerationBody) -> StructuredOutput | None:
    outputs = body.structured_outputs
    if outputs is None:
        return None
    refuse_unread_forms(outputs.model_extra or {}, "structured_outputs", "structured_outputs")
    values = {kind: outputs.value_of(kind) for kind in _KINDS}
    options = {
        "disable_any_whitespace": outputs.disable_any_whitespace,
        "whitespace_pattern": outputs.whitespace_pattern,
    }
    spec = _one_of(values, "structured_outputs", **options)
    if spec is None:
        raise RequestError(
            f"structured_outputs needs exactly one of {', '.join(_KINDS)}, and has none", param="structured_outputs"
        )
    return spec


def _of_guided(body: GenerationBody) -> StructuredOutput | None:
    values = {kind: getattr(body, field) for field, kind in _GUIDED.items()}
    spec = _one_of(values, "", whitespace_pattern=body.guided_whitespace_pattern)
    if spec is None and body.guided_whitespace_pattern is not None:
        field = "guided_whitespace_pattern"
        raise RequestError(f"{field} needs guided_json or guided_json_object beside it", param=field)
    return spec


def _one_of(values: dict[Kind, Any], field: str, **options: Any) -> StructuredOutput | None:
    """The one kind with a value. Without `field`, each kind is a field of its own."""
    kinds: list[Kind] = [
        kind for kind, value in values.items() if value is not None and (kind != "json_object" or value)
    ]
    names = [f"guided_{kind}" if not field else kind for kind in kinds]
    if len(kinds) > 1:
        raise RequestError(
            f"You can only use one kind of constraints for structured outputs but multiple are specified: "
            f"{', '.join(names)}.",
            param=field or names[1],
        )
    return StructuredOutput(kinds[0], values[kinds[0]], field=field or names[0], **options) if kinds else None
