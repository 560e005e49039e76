"""`generation_config.json` is a file of others: a value that it cannot have is told at the start, with its file."""

import json
from pathlib import Path
from typing import Any

import pytest

from jserve.api.model.defaults import SamplingDefaults
from jserve.api.model.served_model import ServedModel
from jserve.api.settings import ServerSettings
from jserve.config import EngineConfig
from jserve.errors import StartupError

WRONG = [
    ("temperature", "0.6", "'0.6' but must be a number from 0 on"),
    ("temperature", -1, "'-1' but must be a number from 0 on"),
    ("temperature", True, "'True' but must be a number from 0 on"),
    ("top_p", 2, "'2' but must be a number above 0 and at most 1"),
    ("top_k", 1.5, "'1.5' but must be a whole number from -1 on"),
    ("min_p", [0], r"'\[0\]' but must be a number between 0 and 1"),
    ("repetition_penalty", 0, "'0' but must be a number above 0"),
    ("max_new_tokens", 0, "'0' but must be a whole number above 0"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_impossible_value_is_refused_with_the_file_and_the_remedy(name: str, value: Any, message: str) -> None:
    with pytest.raises(
        StartupError, match=rf"/m/generation_config.json: {name} is {message}; .*--generation-config vllm"
    ):
        SamplingDefaults.from_generation_config({name: value}, source="/m/generation_config.json")


def test_null_and_absent_mean_neutral_and_whole_numbers_may_be_written_as_fractions() -> None:
    read = SamplingDefaults.from_generation_config({"temperature": None, "top_k": 20.0}, source="m")
    assert (read.temperature, read.top_k, read.set_fields) == (1.0, 20, frozenset({"top_k"}))


def test_model_with_an_impossible_default_does_not_start(model_dir: Path, tmp_path: Path) -> None:
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": 2}))
    settings, config = ServerSettings(model=str(tmp_path)), EngineConfig(model=str(tmp_path))
    with pytest.raises(StartupError, match="top_p is '2'"):
        ServedModel.load(settings, config)
