"""`jserve run-batch`: a file in, a file out, and nothing lost or twice where it was killed between."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jserve.commands.run_batch import run
from jserve.errors import ConfigError
from tests.api.live_server import fake_engine
from tests.patience import PATIENCE_S, wait_until


def request(number: int, url: str = "/v1/completions", **body: Any) -> str:
    body = body or {"prompt": "abc", "max_tokens": 2}
    return json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}) + "\n"


def begun(folder: Path, model_dir: Path) -> "subprocess.Popen[str]":
    files = ("-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"))
    options = ("--model", str(model_dir), "--engine-command", " ".join(fake_engine("--error-token", "5")))
    return subprocess.Popen(
        [sys.executable, "-m", "jserve", "run-batch", *files, *options], stderr=subprocess.PIPE, text=True
    )


def num_results(progress: Path) -> int:
    """Lines that have results, as another process sees them."""
    import sqlite3

    try:
        with sqlite3.connect(f"file:{progress / 'jserve.sqlite'}?mode=ro", uri=True) as database:
            return int(database.execute("SELECT count(*) FROM results").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def test_a_killed_command_goes_on_and_writes_each_line_once(tmp_path: Path, model_dir: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    lines = [request(n) for n in range(600)]
    lines[7] = request(7, "/v1/chat/completions", **chat)
    lines[9] = request(9, prompt=[5])
    (tmp_path / "in.jsonl").write_text("".join(lines))
    out, progress = tmp_path / "out.jsonl", tmp_path / "out.jsonl.progress"
    for number in (signal.SIGKILL, signal.SIGTERM):
        command = begun(tmp_path, model_dir)
        before = num_results(progress)
        wait_until(lambda: num_results(progress) > before + 30 or command.poll() is not None)  # noqa: B023
        os.kill(command.pid, number)
        _, text = command.communicate(timeout=PATIENCE_S)
        assert not out.exists()
    assert command.returncode == 1
    assert "goes on where this one stopped" in text
    command = begun(tmp_path, model_dir)
    _, text = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 0, text
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"line-{n}" for n in range(600)]
    assert answers[7]["response"]["body"]["object"] == "chat.completion"
    failed = [answer["custom_id"] for answer in answers if answer["response"]["status_code"] != 200]
    assert failed == ["line-9"]
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("nonsense\n", "line 1: this is no request"),
        (request(1, "/v1/images"), "line 1: url is"),
        (None, "cannot be read"),
    ],
)
def test_an_input_that_is_wrong_is_told_before_anything_is_loaded(
    tmp_path: Path, content: str | None, text: str
) -> None:
    if content is not None:
        (tmp_path / "in").write_text(content)
    with pytest.raises(ConfigError, match=text):
        run(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", "m"])
    assert not (tmp_path / "out.progress").exists()


def test_the_progress_of_another_input_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(request(1))
    (tmp_path / "out.progress").mkdir()
    (tmp_path / "out.progress" / "input.sha256").write_text("another")
    with pytest.raises(ConfigError, match="of another input"):
        run(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", "m"])
