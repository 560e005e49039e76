"""Every preset is found by its name, read without complaint, and says what it means."""

from pathlib import Path

import pytest

from jserve.commands.options import parse
from jserve.commands.preset import PRESETS
from jserve.errors import ConfigError

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


@pytest.mark.parametrize("preset", NAMES)
def test_preset_loads_by_its_name_or_its_path_and_flags_win(preset: str) -> None:
    config, _ = parse(["--config", preset])
    assert config.max_num_seqs is not None
    assert parse(["--config", str(PRESETS / f"{preset}.yaml")])[0] == config
    config, settings = parse(["--config", preset, "--max-num-seqs", "7", "--port", "8123"])
    assert (config.max_num_seqs, settings.port) == (7, 8123)


def test_a_file_of_the_same_name_wins_over_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAMES[0]).write_text("model: of-the-file\n")
    monkeypatch.chdir(tmp_path)
    assert parse(["--config", NAMES[0]])[0].model == "of-the-file"


def test_an_unknown_name_is_told_with_the_presets_that_there_are() -> None:
    with pytest.raises(ConfigError, match=f"neither a file nor a preset; the presets are {', '.join(NAMES)}"):
        parse(["--config", "no-such-preset"])


def test_a_missing_file_is_told_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        parse(["--config", str(tmp_path / "none.yaml")])
