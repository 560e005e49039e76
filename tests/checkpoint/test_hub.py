"""Names on the hub, against a local server of its routes: what is fetched, what is refused, what the cache has."""

import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from jserve.checkpoint.hub import HubName, choose_files, is_hub_name
from jserve.errors import CheckpointError
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf
from tests.checkpoint.hub_server import Hub, running_hub

FETCH = """
import sys
from jserve.checkpoint.hub import fetch
print(fetch(sys.argv[1], revision=(sys.argv[2:] or [None])[0]))
"""


def fetch(
    hub: Hub, home: Path, *arguments: str, offline: bool = False, **further: str
) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since `huggingface_hub` reads its environment when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | further
    command = [sys.executable, "-c", FETCH, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen3-8B", True),
        ("hf.co/bartowski/Qwen3-8B-GGUF:Q4_K_M", True),
        ("https://huggingface.co/Qwen/Qwen3-8B", True),
        ("bartowski/Qwen3-8B-GGUF:Q4_K_M", True),
        ("ollama:llama3.2", False),
        ("./Qwen/Qwen3-8B", False),
        ("/models/Qwen3-8B", False),
        ("models/a/b", False),
        ("org/model.gguf", False),
        ("gpt2", False),
    ],
)
def test_a_name_is_one_and_a_path_is_not(text: str, expected: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(text) is expected


def test_what_begins_with_a_folder_that_is_here_is_a_path(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name("models/Qwen3")


FOLDER = ["config.json", "model.safetensors", "tokenizer.json", "merges.txt", "README.md", "pytorch_model.bin"]
PARTS = ["m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf"]


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("o/m", FOLDER, set(FOLDER[:4])),
        ("o/m", [*FOLDER, "consolidated.safetensors"], set(FOLDER[:4])),
        ("o/m", ["config.json", "model.safetensors", "1_Pooling/config.json", "onnx/model.onnx"],
         {"config.json", "model.safetensors", "1_Pooling/config.json"}),
        ("o/m", PARTS, set(PARTS[:2])),
        ("o/m:q8_0", PARTS, {"m-Q8_0.gguf"}),
        ("o/m:Q4_K_M", [*PARTS, *FOLDER], set(PARTS[:2])),
        ("o/m", ["only.IQ4_XS.gguf"], {"only.IQ4_XS.gguf"}),
        ("o/m:UD-Q4_K_XL", ["UD-Q4_K_XL/m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"], {"UD-Q4_K_XL/m-UD-Q4_K_XL.gguf"}),
    ],
)  # fmt: skip
def test_only_the_files_that_a_start_needs_are_fetched(name: str, files: list[str], expected: set[str]) -> None:
    assert set(choose_files(HubName.parse(name), files)) == expected


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("o/m", ["config.json", "pytorch_model.bin"], "no safetensors and no GGUF files, only .bin"),
        ("o/m:Q2_K", PARTS, "no GGUF file of the kind Q2_K; these are there: Q4_K_M, Q8_0"),
        ("o/m", ["a-Q5_K_M.gguf", "a-Q6_K.gguf"], "several GGUF files; these are there: Q5_K_M, Q6_K"),
    ],
)
def test_a_choice_that_is_left_open_is_told_with_what_is_there(name: str, files: list[str], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        choose_files(HubName.parse(name), files)


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    """A GGUF file of a tiny model."""
    kind = gguf.GGMLQuantizationType.Q4_1
    return write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, quantization=kind).read_bytes()


def test_a_file_is_fetched_once_and_found_again_without_a_network(tmp_path: Path, model: bytes) -> None:
    home = tmp_path / "home"
    with running_hub({"o/m": {"m-Q4_1.gguf": model, "README.md": b"read me"}}) as hub:
        first = fetch(hub, home, "hf.co/o/m:Q4_1")
        path = Path(first.stdout.strip())
        assert path.read_bytes() == model, first.stderr
        sent = hub.bytes_sent
        assert fetch(hub, home, "o/m").stdout == first.stdout
        assert hub.bytes_sent == sent
        hub.requests.clear()
        assert fetch(hub, home, "o/m", offline=True).stdout == first.stdout
        assert hub.requests == []
        assert "o/other is not in the cache" in last_line(fetch(hub, home, "o/other", offline=True))
    assert fetch(hub, home, "o/m").stdout == first.stdout  # its server is gone


def test_a_copy_that_is_not_what_the_hub_says_is_refused_and_fetched_anew(tmp_path: Path, model: bytes) -> None:
    with running_hub({"o/m": {"m.gguf": model}}, spoiled={"m.gguf"}) as hub:
        said = last_line(fetch(hub, tmp_path / "home", "o/m"))
        assert "but the hub says" in said
        hub.spoiled.clear()
        assert Path(fetch(hub, tmp_path / "home", "o/m").stdout.strip()).read_bytes() == model


def test_what_the_hub_refuses_is_told_with_what_to_do(tmp_path: Path, model: bytes) -> None:
    repositories = {"o/m": {"m.gguf": model}, "o/gated": {"m.gguf": model}}
    with running_hub(repositories, gated=frozenset({"o/gated"}), token="right") as hub:
        home = tmp_path / "home"
        assert "the hub has no o/none" in last_line(fetch(hub, home, "o/none"))
        assert "no revision nightly" in last_line(fetch(hub, home, "o/m", "nightly"))
        assert "accept its terms on its page, and set HF_TOKEN" in last_line(fetch(hub, home, "o/gated"))
        assert fetch(hub, home, "o/gated", HF_TOKEN="right").stdout.endswith("m.gguf\n")


def test_inspect_reads_headers_and_nothing_else(tmp_path: Path, model: bytes) -> None:
    padded = model + bytes(32 << 20)  # weights that nobody needs
    with running_hub({"o/m": {"m.gguf": padded}}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "jserve", "inspect", "hf.co/o/m", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert '"runs": true' in done.stdout, done.stderr
        assert hub.bytes_sent <= 4 << 20
    assert not list(tmp_path.rglob("*.gguf"))[1:]  # the one that the test made


def test_a_path_reaches_for_no_network(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "here.gguf").write_bytes(model)
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('the network is reached')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from jserve.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "inspect", str(tmp_path / "here.gguf")]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
