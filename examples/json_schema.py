"""An answer that is held to a JSON schema: it always parses, whatever the model."""

import json
import os

from openai import OpenAI

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "population": {"type": "integer"}},
    "required": ["city", "population"],
    "additionalProperties": False,
}
client = OpenAI(base_url=os.environ.get("JSERVE_URL", "http://localhost:8000") + "/v1", api_key="none")
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": "The largest city of Japan?"}],
    response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}},
    max_tokens=100,
)
choice = answer.choices[0]
if choice.finish_reason == "length":
    print("cut at the limit of tokens:", choice.message.content)
else:
    print(json.loads(choice.message.content))
