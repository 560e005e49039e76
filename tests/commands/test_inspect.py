"""`jserve inspect` says what is there, why it does not run, and plans as a start does, from headers alone."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from jserve.checkpoint import open_checkpoint
from jserve.checkpoint.gguf.checkpoint import GgufCheckpoint
from jserve.checkpoint.huggingface import HuggingFaceCheckpoint
from jserve.cli import main, run
from jserve.commands.inspect import Inspection, inspect, print_inspection
from jserve.config import EngineConfig
from jserve.errors import ConfigError
from jserve.runtime import capacity, memory, platform
from jserve.runtime.prepare import prepare
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf
from tests.checkpoint.ollama_maker import add_model
from tests.worlds import make_model


@pytest.fixture(autouse=True)
def _no_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a weight is read")

    monkeypatch.setattr(GgufCheckpoint, "read", refuse)
    monkeypatch.setattr(HuggingFaceCheckpoint, "read", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in Hugging Face's format."""
    directory = tmp_path / "hf"
    directory.mkdir()
    config = CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tiny_state(), directory / "model.safetensors")
    return directory


def look(path: Path | str, device: str = "cpu", **options: Any) -> Inspection:
    return inspect(EngineConfig(model=str(path), **options), device)


def change(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_types_parameters_and_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    state = tiny_state()
    actual = look(write_gguf(tmp_path / "m.gguf", state, CONFIG, quantization=gguf.GGMLQuantizationType.Q4_1))
    matrices = sum(values.size for values in state.values() if values.ndim > 1)
    vectors = sum(values.size for values in state.values() if values.ndim == 1)
    assert actual.parameters == matrices + vectors
    assert [(kind["type"], kind["num_parameters"], kind["num_bytes"]) for kind in actual.stored] == [
        ("Q4_1", matrices, matrices // 32 * 20),
        ("F32", vectors, vectors * 4),
    ]
    assert actual.bytes == (tmp_path / "m.gguf").stat().st_size
    assert (actual.runs, actual.architecture, actual.shape["num_hidden_layers"]) == (True, "LlamaForCausalLM", 2)


def test_plan_is_that_of_a_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "free_host_memory", lambda: 1 << 30)
    monkeypatch.setattr(memory, "free_host_memory", lambda: 1 << 30)
    engine_config = EngineConfig(model=str(folder))
    prepared = prepare(engine_config, open_checkpoint(folder), platform.make_mesh(1))
    actual = look(folder)
    assert actual.memory is not None
    assert {name: getattr(prepared.plan, name) for name in actual.memory} == actual.memory
    assert actual.tokens_of_server == prepared.shape.num_pages * prepared.shape.page_size
    assert actual.max_model_len == prepared.shape.max_model_len


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_devices_share_weights_and_cache(folder: Path, parts: int) -> None:
    whole, actual = look(folder, "h100"), look(folder, "h100", tensor_parallel_size=parts)
    kv = 2 * 2 * max(2, parts) * 16 * 2  # keys and values, layers, heads (2, copied for 4), dimensions
    assert actual.kv_bytes_per_token == kv
    assert actual.memory is not None
    assert whole.memory is not None
    assert actual.memory["limit"] == int((81_559 << 20) * 0.92)
    assert whole.memory["weights"] >= actual.memory["weights"] >= whole.memory["weights"] // parts
    left = actual.memory["limit"] - sum(
        actual.memory[name] for name in ("weights", "temporaries", "sampling", "margin", "autotuning")
    )
    assert actual.tokens_that_fit == pytest.approx(left // (kv // parts), abs=64)


def test_tokens_before_a_window_take_what_layers_without_one_keep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"sliding_window": 16, "sliding_window_pattern": 2, "head_dim": 16}
    actual = look(make_model(tmp_path, "Gemma3ForCausalLM", **fields), "h100")
    layer = 2 * 2 * 16 * 2  # keys and values, heads, dimensions, bytes
    assert (actual.kv_bytes_per_token, actual.kv_bytes_before_windows) == (2 * layer, layer)
    print_inspection(actual)
    assert "256 bytes per token, 128 where it lies before the window" in capsys.readouterr().out


def test_gpu_takes_the_checkpoints_type(folder: Path) -> None:
    assert look(folder, "h200").dtype == "bfloat16"
    assert look(folder, "h200", dtype="float32").dtype == "float32"


def test_what_does_not_run_is_told_with_the_reason_of_a_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(capacity.GPU_MEMORY, "l4", 1)
    assert "no memory is left for the KV cache" in str(look(folder, "l4").problem)
    assert "--tensor-parallel-size 3 does not divide" in str(look(folder, "h100", tensor_parallel_size=3).problem)
    change(folder, vocab_size=95)
    assert "has shape [96, 64] but the configuration implies [95, 64]" in str(look(folder).problem)
    change(folder, architectures=["MambaForCausalLM"])
    assert "architecture MambaForCausalLM is not supported; supported are " in str(look(folder).problem)
    (folder / "model.safetensors").unlink()
    without = look(folder)
    assert "holds no weights" in str(without.problem)
    assert (without.runs, without.parameters, without.shape["hidden_size"]) == (False, 0, 64)


def test_unsupported_gguf_file_is_still_described(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "mamba")
    writer.add_tensor("x", np.ones((4, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    actual = look(tmp_path / "m.gguf")
    assert (actual.architecture, actual.parameters, actual.runs) == ("mamba", 128, False)
    assert "architecture 'mamba'" in str(actual.problem)


def test_unknown_device_is_refused_with_those_that_are_known(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--device 'tpu' is not known; known are cpu, .*h200"):
        look(folder, "tpu")


def test_command_prints_a_table_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model(tmp_path / "store", write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    run(["inspect", "ollama:tiny", "--device", "H200", "-tp", "2"])
    table = capsys.readouterr().out
    assert "yes, on 2 x h200 in bfloat16" in table
    assert "256 bytes per token" in table
    run(["inspect", "ollama:tiny", "--json"])
    assert json.loads(capsys.readouterr().out)["runs"] is True
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(tmp_path / "nowhere")])
    assert left.value.code == 1
    assert "does not exist" in capsys.readouterr().err


def test_command_fails_for_a_model_that_would_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, architectures=["Qwen3NextForCausalLM"])
    with pytest.raises(SystemExit) as left:
        run(["inspect", str(folder), "--json"])
    assert left.value.code == 1
    assert json.loads(capsys.readouterr().out)["runs"] is False


def test_every_model_below_a_folder_is_listed_with_why_not(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("files", "adapter", "pickled", "empty"):
        (tmp_path / name).mkdir()
    write_gguf(tmp_path / "files" / "m.gguf", tiny_state(), CONFIG)
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "pickled" / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    main(["inspect", "--all", str(tmp_path), "--json"])
    listed = {Path(each["model"]).name: each for each in json.loads(capsys.readouterr().out)}
    assert listed.keys() == {"hf", "m.gguf", "adapter", "pickled"}
    assert [listed[name]["runs"] for name in ("hf", "m.gguf", "adapter", "pickled")] == [True, True, False, False]
    assert "holds a LoRA adapter" in listed["adapter"]["problem"]
    assert "only pickled weights" in listed["pickled"]["problem"]
    main(["inspect", "--all", str(tmp_path)])
    assert "2 of 4 models run" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is no folder"):
        run(["inspect", "--all", str(folder / "config.json")])


def test_ollama_without_a_name_lists_its_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    add_model(tmp_path, write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG))
    add_model(tmp_path, None, path="registry.ollama.ai/library/cloud/latest")
    main(["inspect", "ollama:", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [(each["model"], each["runs"]) for each in listed] == [
        ("ollama:cloud:latest", False),
        ("ollama:tiny:latest", True),
    ]
    assert "layers of weights" in listed[0]["problem"]


def test_a_stranger_with_the_tensors_of_a_known_architecture_is_said_to_look_like_it(folder: Path) -> None:
    change(folder, architectures=["OwnForCausalLM"])
    problem = look(folder).problem
    assert problem is not None
    assert "It looks like LlamaForCausalLM" in problem
    assert "start with --architecture LlamaForCausalLM" in problem
    assert look(folder, architecture="LlamaForCausalLM").runs
    assert "OtherForCausalLM is not supported" in (look(folder, architecture="OtherForCausalLM").problem or "")
    state = tiny_state()
    save_file({**state, "model.layers.0.own.weight": state["model.norm.weight"]}, folder / "model.safetensors")
    assert "looks like" not in (look(folder).problem or "")


def test_an_architecture_is_no_flag_for_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG)
    assert "says itself what it is" in (look(path, architecture="LlamaForCausalLM").problem or "")


def test_a_cross_encoder_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model(tmp_path, "BertForSequenceClassification", num_labels=1)
    actual = look(folder)
    assert (actual.runs, actual.labels, actual.pooling) == (True, 1, None)
    print_inspection(actual)
    assert "texts of up to 256 tokens, labels: 1" in capsys.readouterr().out
