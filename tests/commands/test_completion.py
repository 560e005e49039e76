"""The scripts of `jserve completion`, each in its own shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from jserve.commands import completion
from jserve.commands.names import COMMANDS

ASK_BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _jserve_completion; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    flags = dict(completion._commands())
    texts = {shell: completion._bash(flags, shell) for shell in ("bash", "zsh")} | {"fish": completion._fish(flags)}
    paths = {shell: folder / shell for shell in texts}
    for shell, path in paths.items():
        path.write_text(texts[shell])
    return paths


def completed(shell: str, script: Path, *words: str) -> list[str]:
    """What a shell offers for the last of the words."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "bash":
        command = ["bash", "-c", ASK_BASH, "bash", str(script), *words]
    else:
        command = ["fish", "-c", f"source {script}; complete -C '{' '.join(words)}'"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=script.parent)
    return [line.split("\t")[0] for line in ran.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_commands_flags_and_values_are_offered(scripts: dict[str, Path], shell: str) -> None:
    script = scripts[shell]
    assert {"serve", *COMMANDS} <= set(completed(shell, script, "jserve", ""))
    assert completed(shell, script, "jserve", "perpl") == ["perplexity"]
    assert completed(shell, script, "jserve", "--max-num-s") == ["--max-num-seqs"]
    assert completed(shell, script, "jserve", "serve", "--max-num-s") == ["--max-num-seqs"]
    assert completed(shell, script, "jserve", "run", "MODEL", "--keep-") == ["--keep-alive"]
    assert completed(shell, script, "jserve", "run", "MODEL", "--max-num-s") == ["--max-num-seqs"]
    assert completed(shell, script, "jserve", "bench", "serve", "--burst") == ["--burstiness"]
    assert completed(shell, script, "jserve", "serve", "--dtype", "bf") == ["bfloat16"]
    assert completed(shell, script, "jserve", "quantize", "SRC", "DST", "--method", "") == ["awq", "gptq"]
    assert "rotate" in completed(shell, script, "jserve", "key", "")


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_files_are_offered_where_a_model_is_wanted(scripts: dict[str, Path], shell: str) -> None:
    script = scripts[shell]
    (script.parent / "weights.gguf").touch()
    assert completed(shell, script, "jserve", "inspect", "weig") == ["weights.gguf"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_is_one_in_its_shell(scripts: dict[str, Path], shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(scripts[shell])], check=True)


def test_a_name_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    completion.run(["zsh"])
    assert capsys.readouterr().out.startswith("#compdef jserve\n")
