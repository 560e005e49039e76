"""`ollama:NAME`: from a name to the files that Ollama pulled, and what is refused on the way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jserve.checkpoint import find_gguf, find_ollama_model, open_checkpoint
from jserve.errors import CheckpointError
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf
from tests.checkpoint.ollama_maker import IMAGE, add_blob, add_model


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", tiny_state(), CONFIG)


def edit(manifest: Path, **changes: Any) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def test_pulled_model_is_opened_by_its_name(store: Path, gguf: Path) -> None:
    add_model(store, gguf)
    with_file, with_name = open_checkpoint(gguf), open_checkpoint("ollama:tiny")
    assert with_name.format == "gguf"
    assert with_name.config() == with_file.config()
    for name in with_file.tensors():
        np.testing.assert_array_equal(with_name.read(name), with_file.read(name))


@pytest.mark.parametrize(
    ("path", "name", "shown"),
    [
        ("registry.ollama.ai/library/tiny/latest", "ollama:tiny", "tiny:latest"),
        ("registry.ollama.ai/library/tiny/latest", "ollama://tiny:latest", "tiny:latest"),
        ("registry.ollama.ai/library/tiny/1b", "ollama:tiny:1b", "tiny:1b"),
        ("registry.ollama.ai/me/tiny/latest", "ollama:me/tiny", "me/tiny:latest"),
        ("hf.co/Org/Repo-GGUF/Q4_K_M", "ollama:hf.co/Org/Repo-GGUF:Q4_K_M", "hf.co/Org/Repo-GGUF:Q4_K_M"),
        ("hf.co/Org/Repo-GGUF/Q4_K_M", "ollama:hf.co/org/repo-gguf:q4_k_m", "hf.co/org/repo-gguf:q4_k_m"),
        (
            "localhost:5000/library/tiny/v1.5",
            "ollama:localhost:5000/library/tiny:v1.5",
            "localhost:5000/library/tiny:v1.5",
        ),
    ],
)
def test_names_are_those_of_ollama(store: Path, gguf: Path, path: str, name: str, shown: str) -> None:
    manifest = add_model(store, gguf, path=path)
    model = find_ollama_model(name)
    assert (model.name, model.manifest) == (shown, manifest)
    assert find_gguf(name) == model.gguf


def test_home_is_searched_where_no_store_is_named(tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    add_model(tmp_path / ".ollama" / "models", gguf)
    assert find_ollama_model("ollama:tiny").gguf.parent.name == "blobs"


def test_template_system_parameters_and_messages_come_along(store: Path, gguf: Path) -> None:
    example = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]
    add_model(
        store,
        gguf,
        template="{{ .Prompt }}",
        system="Be a pirate.",
        license="MIT",
        params={"stop": ["x"]},
        messages=example,
    )
    model = find_ollama_model("ollama:tiny")
    assert (model.template, model.system, model.license) == ("{{ .Prompt }}", "Be a pirate.", "MIT")
    assert model.parameters == {"stop": ["x"]}
    assert list(model.messages) == example


def test_projector_is_named_as_without_effect(store: Path, gguf: Path) -> None:
    add_model(store, gguf, projector="GGUF")
    assert find_ollama_model("ollama:tiny").describe_unused() == (
        "tiny:latest: images (its projector) are not supported; it serves text only"
    )


def test_model_that_is_not_there_is_refused_with_those_that_are(store: Path, gguf: Path) -> None:
    add_model(store, gguf, path="registry.ollama.ai/library/qwen3/0.6b")
    with pytest.raises(
        CheckpointError, match=r"tiny:latest is not among .* qwen3:0\.6b\. Run `ollama pull tiny:latest`"
    ):
        find_ollama_model("ollama:tiny")


@pytest.mark.parametrize(
    "name",
    [
        "ollama:",
        "ollama:../x",
        "ollama:a/../../b",
        "ollama:/etc/passwd",
        "ollama:a/b/c/d",
        "ollama:x:../y",
        "ollama:x:a/b:c",
        "ollama:x\0y",
        "ollama:.hidden",
        "ollama:" + "x" * 1000,
    ],
)
def test_names_that_lead_out_of_the_store_are_refused(store: Path, gguf: Path, name: str) -> None:
    add_model(store, gguf)
    with pytest.raises(CheckpointError, match="is not a model's name"):
        find_ollama_model(name)


def test_adapter_is_refused_by_name(store: Path, gguf: Path) -> None:
    add_model(store, gguf, adapter="GGUF")
    with pytest.raises(CheckpointError, match=r"tiny:latest has an adapter \(LoRA\), which is not supported"):
        find_ollama_model("ollama:tiny")


def test_models_without_a_gguf_file_say_what_they_are(store: Path, gguf: Path) -> None:
    add_model(store, None, config={"remote_host": "https://ollama.com", "remote_model": "big"})
    with pytest.raises(CheckpointError, match="runs in Ollama's cloud"):
        find_ollama_model("ollama:tiny")
    add_model(store, None, tensor="x")
    with pytest.raises(CheckpointError, match="tensor by tensor for MLX"):
        find_ollama_model("ollama:tiny")
    add_model(store, b"not a model")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_checkpoint("ollama:tiny")


def test_incomplete_download_is_told_by_its_size(store: Path, gguf: Path) -> None:
    add_model(store, gguf.read_bytes())
    blob = find_ollama_model("ollama:tiny").gguf
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is incomplete, pull the model again"):
        find_ollama_model("ollama:tiny")
    blob.unlink()
    with pytest.raises(CheckpointError, match="is missing although"):
        find_ollama_model("ollama:tiny")


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (None, "no list of layers"),
        ([7], "no list of layers"),
        ([], "lists 0 layers of weights"),
        ([{"mediaType": f"{IMAGE}model", "digest": "sha256:" + "0" * 63}], "not a SHA-256 digest"),
        ([{"mediaType": f"{IMAGE}model", "digest": "../../../etc/passwd"}], "not a SHA-256 digest"),
        ([{"mediaType": f"{IMAGE}model", "digest": ["x"]}], "not a SHA-256 digest"),
        ([{"mediaType": f"{IMAGE}model", "digest": "sha256:" + "0" * 64}], "is missing although"),
    ],
)
def test_manifests_that_are_none_are_refused(store: Path, gguf: Path, layers: Any, said: str) -> None:
    edit(add_model(store, gguf), layers=layers)
    with pytest.raises(CheckpointError, match=said):
        find_ollama_model("ollama:tiny")


def test_manifest_that_names_itself_ends(store: Path, gguf: Path) -> None:
    """A layer of weights that is the manifest again, and a manifest that is a link to itself."""
    manifest = add_model(store, gguf)
    layer = add_blob(store, manifest)
    edit(manifest, layers=[{"mediaType": f"{IMAGE}model", "digest": layer["digest"]}])
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        find_gguf("ollama:tiny")
    manifest.unlink()
    manifest.symlink_to(manifest)
    with pytest.raises(CheckpointError, match="not among the models"):
        find_gguf("ollama:tiny")


@pytest.mark.parametrize(("kind", "content"), [("params", "[1]"), ("params", "{"), ("messages", '[{"role": "x"}]')])
def test_damaged_layers_are_refused(store: Path, gguf: Path, kind: str, content: str) -> None:
    add_model(store, gguf, **{kind: content})
    with pytest.raises(CheckpointError):
        find_ollama_model("ollama:tiny")
