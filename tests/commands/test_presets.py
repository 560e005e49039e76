"""Every preset is read without complaint, and says what it means."""

from pathlib import Path

import pytest

from jserve.commands.options import parse

PRESETS = sorted((Path(__file__).parents[2] / "jserve" / "commands" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_loads_and_flags_win(preset: Path) -> None:
    config, _ = parse(["--config", str(preset)])
    assert config.max_num_seqs is not None
    config, settings = parse(["--config", str(preset), "--max-num-seqs", "7", "--port", "8123"])
    assert (config.max_num_seqs, settings.port) == (7, 8123)
