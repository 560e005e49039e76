"""Codex CLI and Claude Code with their default settings: a session in which a tool is called and its result is read.

The engine says what it is told to: first the call that stands in the question, then the text that the tool returns.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.live_server import LiveServer, StartServer
from tests.api.tool_templates import HERMES
from tests.clients.packages import npm_install

pytestmark = pytest.mark.slow

CODEX, CLAUDE = "@openai/codex@0.171.0", "@anthropic-ai/claude-code@2.1.197"
SAID = "The file is read."
SESSION_S = 300


@pytest.fixture(scope="module")
def server(make_server: StartServer) -> Iterator[LiveServer]:
    """A token is a byte here, and agents describe themselves in a hundred thousand."""
    live = make_server("--quote-token", "0", chat_template=HERMES, max_model_len=600_000)
    yield live
    live.stop()


def question(name: str, arguments: dict[str, Any]) -> str:
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<|endoftext|><tool_call>\n{call}\n</tool_call><|endoftext|>"


def run_in(folder: Path, command: list[str], **variables: str) -> str:
    """What a client writes that works in a folder with the file `said.txt`, and has a home of its own."""
    work, home = folder / "work", folder / "home"
    for made in (work, home):
        made.mkdir()
    (work / "said.txt").write_text(f"<|endoftext|>{SAID}<|endoftext|>\n")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **variables}
    done = subprocess.run(
        command, cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SESSION_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_codex_completes_a_session_with_a_tool_call(server: LiveServer, tmp_path: Path) -> None:
    """Its requests offer `namespace` and `web_search` tools beside functions."""
    binaries = npm_install(tmp_path, CODEX)
    provider = f'{{name = "jserve", base_url = "{server.url}/v1", env_key = "JSERVE_KEY"}}'
    command = [str(binaries / "codex"), "exec", "--json", "--skip-git-repo-check"]
    command += ["--dangerously-bypass-approvals-and-sandbox", "-m", "tiny"]
    command += ["-c", 'model_provider="jserve"', "-c", f"model_providers.jserve={provider}"]
    command += [question("exec_command", {"cmd": "cat said.txt"})]
    written = run_in(tmp_path, command, JSERVE_KEY="none", CODEX_HOME=str(tmp_path / "home"))
    events = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    assert [item["exit_code"] for item in items if item["type"] == "command_execution"] == [0]
    assert [item["text"] for item in items if item["type"] == "agent_message"] == [SAID]
    assert events[-1]["type"] == "turn.completed"


def test_claude_code_completes_a_session_with_a_tool_call(server: LiveServer, tmp_path: Path) -> None:
    binaries = npm_install(tmp_path, CLAUDE)
    ask = question("Bash", {"command": "cat said.txt", "description": "Read the file"})
    command = [str(binaries / "claude"), "-p", ask, "--model", "tiny", "--allowedTools", "Bash"]
    written = run_in(
        tmp_path,
        [*command, "--output-format", "json"],
        ANTHROPIC_BASE_URL=server.url,
        ANTHROPIC_AUTH_TOKEN="none",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )
    result = json.loads(written)
    assert (result["is_error"], result["result"], result["num_turns"]) == (False, SAID, 2)
