"""The command line of `jserve compile`: read like a server's, with a folder more."""

from pathlib import Path

import pytest

from jserve.commands.compile import parse_compile


def test_compile_takes_the_flags_of_a_server_and_a_folder() -> None:
    command = ["--model", "/m", "--port", "9", "--output", "/o", "--max-num-seqs", "8"]
    config, folder = parse_compile(command)
    assert (config.model, config.max_num_seqs, folder) == ("/m", 8, Path("/o"))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["--model", "/m"], "--output"),
        (["--output", "/o"], "which model"),
        (["--model", "/m", "--output", "/o", "--nonsense"], "--nonsense"),
    ],
)
def test_compile_says_what_is_missing_or_wrong(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parse_compile(command)
    assert left.value.code == 2
    assert said in capsys.readouterr().err
