"""The same server with Anthropic's SDK."""

import os

from anthropic import Anthropic

client = Anthropic(base_url=os.environ.get("JSERVE_URL", "http://localhost:8000"), api_key="none")
model = client.models.list().data[0].id
with client.messages.stream(
    model=model, max_tokens=60, messages=[{"role": "user", "content": "Name three rivers."}]
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
