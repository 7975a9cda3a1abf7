"""Use the endpoint as a LangChain chat model; needs `pip install langchain-openai`."""

from __future__ import annotations

import os

import httpx
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")

models = httpx.get(f"{URL}/models", headers={"Authorization": f"Bearer {KEY}"})
models.raise_for_status()
model = ChatOpenAI(
    base_url=URL,
    api_key=KEY,
    model=models.json()["data"][0]["id"],
    max_tokens=60,
    temperature=0.7,
)
messages = [SystemMessage("You answer in one sentence."), HumanMessage("What is the sea?")]

answer = model.invoke(messages)
print(answer.content)
print(answer.usage_metadata)

for part in model.stream(messages):
    print(part.content, end="", flush=True)
print()
