"""LangChain's model for OpenAI, with another base URL."""

import os

from langchain_openai import ChatOpenAI

url = os.environ.get("JSERVE_URL", "http://localhost:8000") + "/v1"
chat = ChatOpenAI(base_url=url, api_key="none", model=os.environ.get("JSERVE_MODEL", "default"), max_tokens=60)
for chunk in chat.stream("Name a colour."):
    print(chunk.content, end="", flush=True)
print()
