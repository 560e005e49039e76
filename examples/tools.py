"""A tool call and its result: `required` makes the model call, the arguments follow the tool's schema."""

import json
import os

from openai import OpenAI

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 999}, "b": {"type": "integer", "maximum": 999}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
client = OpenAI(base_url=os.environ.get("JSERVE_URL", "http://localhost:8000") + "/v1", api_key="none")
model = client.models.list().data[0].id
messages: list = [{"role": "user", "content": "What is 17 + 25?"}]
answer = client.chat.completions.create(
    model=model, messages=messages, tools=[TOOL], tool_choice="required", max_tokens=200
)
calls = answer.choices[0].message.tool_calls or []
messages.append(answer.choices[0].message)
for call in calls:
    numbers = json.loads(call.function.arguments)
    print("called", call.function.name, numbers)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": str(numbers["a"] + numbers["b"])})
if calls:
    final = client.chat.completions.create(model=model, messages=messages, max_tokens=60)
    print(final.choices[0].message.content)
