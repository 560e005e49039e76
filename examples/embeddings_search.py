"""Retrieval in its smallest form: embed passages, take the nearest to a question, answer from it."""

import os

from openai import OpenAI

PASSAGES = [
    "The Nile is the longest river of Africa.",
    "Mount Everest is the highest mountain above the sea.",
    "The blue whale is the largest animal that has ever lived.",
]
QUESTION = "Which animal is the largest?"
client = OpenAI(base_url=os.environ.get("JSERVE_URL", "http://localhost:8000") + "/v1", api_key="none")
model = client.models.list().data[0].id
*vectors, question = [
    item.embedding for item in client.embeddings.create(model=model, input=[*PASSAGES, QUESTION]).data
]
scores = [sum(a * b for a, b in zip(vector, question, strict=True)) for vector in vectors]
passage = PASSAGES[scores.index(max(scores))]
print("nearest:", passage)
answer = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": f"{passage}\n\n{QUESTION}"}], max_tokens=60
)
print(answer.choices[0].message.content)
