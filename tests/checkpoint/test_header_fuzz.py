"""Damaged headers of every kind open or are refused with one error, quickly, and take no memory that they claim."""

import contextlib
import json
import os
import random
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.numpy import load_file, save_file

from jserve.errors import CheckpointError
from jserve.models.registry import resolve
from tests.checkpoint.gguf.families_maker import write_family
from tests.checkpoint.header_fuzzer import damage_json
from tests.models.test_parity import CASES
from tests.worlds import SMALL, make_model

FUZZER = Path(__file__).with_name("header_fuzzer.py")


def _sharded(folder: Path) -> Path:
    """A folder of two shards with their index."""
    made = make_model(folder / "whole", "Qwen2ForCausalLM")
    state = load_file(made / "model.safetensors")
    (sound := folder / "sound").mkdir()
    names = sorted(state)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, of_file in shards.items():
        save_file({name: state[name] for name in of_file}, sound / file)
    weight_map = {name: file for file, of_file in shards.items() for name in of_file}
    (sound / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (sound / "config.json").write_bytes((made / "config.json").read_bytes())
    return sound


def _gguf(folder: Path) -> Path:
    made = make_model(folder / "whole", "Qwen3ForCausalLM", head_dim=16)
    (folder / "sound").mkdir()
    write_family(folder / "sound" / "m.gguf", made, "qwen3")
    return folder / "sound"


@pytest.mark.parametrize("make", [_sharded, _gguf], ids=["safetensors", "gguf"])
@pytest.mark.parametrize("count", [120, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_headers_are_refused_quickly_within_little_memory(make, count: int, tmp_path: Path) -> None:
    sound, seed = make(tmp_path), secrets.randbelow(2**32)
    kind = "gguf" if make is _gguf else "safetensors"
    command = [sys.executable, str(FUZZER), str(sound), kind, str(seed), str(count)]
    path = os.pathsep.join((str(Path.cwd()), os.environ.get("PYTHONPATH", "")))
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == 0, f"with seed {seed}: {ended.stderr[-3000:]}"
    counts = json.loads(ended.stdout.splitlines()[-1])
    assert counts["refused"] > count / 10, counts


def test_a_damaged_configuration_of_any_family_is_read_or_refused(tmp_path: Path) -> None:
    seed = secrets.randbelow(2**32)
    rng = random.Random(seed)
    for architecture, fields in CASES.values():
        config = getattr(transformers, architecture).config_class(**{**SMALL, **fields}, architectures=[architecture])
        sound = json.loads(config.to_json_string(use_diff=False))
        for _ in range(40):
            damaged = damage_json(sound, rng)
            if isinstance(damaged, dict):
                with contextlib.suppress(CheckpointError):
                    _resolve(damaged, seed)


def _resolve(config: dict[str, Any], seed: int) -> None:
    try:
        resolve(config, source="config.json")
    except Exception as error:
        error.add_note(f"with seed {seed}")
        raise
