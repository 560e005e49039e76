"""The same server with the `ollama` package: nothing but the host changes."""

import os

from ollama import Client

client = Client(host=os.environ.get("JSERVE_URL", "http://localhost:8000"))
model = client.list().models[0].model
for part in client.chat(
    model, [{"role": "user", "content": "Say hello."}], stream=True, options={"num_predict": 40, "temperature": 0}
):
    print(part.message.content, end="", flush=True)
print()
