"""Vercel's AI SDK with its default settings: a tool is called and answered, on /v1/responses and on chat."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.live_server import LiveServer, StartServer
from tests.api.tool_templates import HERMES
from tests.clients.packages import npm_install

pytestmark = pytest.mark.slow

PACKAGES = ("ai@6", "@ai-sdk/openai@3", "@ai-sdk/openai-compatible@2", "zod@4")
SCRIPT = """\
import { generateText, streamText, tool, stepCountIs } from 'ai';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { z } from 'zod';

const baseURL = process.argv[2] + '/v1';
const prompt = process.argv[3];
const openai = createOpenAI({ baseURL, apiKey: 'none' });
const models = {
  responses: openai('tiny'),
  chat: openai.chat('tiny'),
  compatible: createOpenAICompatible({ name: 'jserve', baseURL })('tiny'),
};
const tools = {
  read: tool({
    description: 'Reads a file.',
    inputSchema: z.object({ name: z.string() }),
    execute: async ({ name }) => `<|endoftext|>${name} is read.<|endoftext|>`,
  }),
};
const said = {};
for (const [name, model] of Object.entries(models)) {
  const asked = { model, tools, prompt, stopWhen: stepCountIs(3) };
  const whole = await generateText(asked);
  const streamed = streamText(asked);
  let text = '';
  for await (const part of streamed.textStream) text += part;
  said[name] = [whole.text, text, whole.steps.length];
}
console.log(JSON.stringify(said));
"""


@pytest.fixture(scope="module")
def server(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server("--quote-token", "0", chat_template=HERMES, max_model_len=8192)
    yield live
    live.stop()


def test_a_tool_is_called_and_answered_with_every_model_of_the_sdk(server: LiveServer, tmp_path: Path) -> None:
    """On /v1/responses the second request refers to the items of the first answer instead of sending them."""
    npm_install(tmp_path, *PACKAGES)
    (tmp_path / "talk.js").write_text(SCRIPT)
    call = json.dumps({"name": "read", "arguments": {"name": "a.txt"}})
    prompt = f"<|endoftext|><tool_call>\n{call}\n</tool_call><|endoftext|>"
    command = ["node", "talk.js", server.url, prompt]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = ["a.txt is read.", "a.txt is read.", 2]
    assert json.loads(done.stdout) == {"responses": expected, "chat": expected, "compatible": expected}
