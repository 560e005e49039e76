"""The presets that come with jserve: files of `configs/`, which `--config` finds by their names."""

from pathlib import Path

from jserve.errors import ConfigError

_IN_WHEEL = Path(__file__).with_name("presets")
PRESETS = _IN_WHEEL if _IN_WHEEL.exists() else Path(__file__).parents[2] / "configs"
"""The wheel has `configs/` beside this file; a checkout has it at its top."""


def config_path(name: str) -> Path:
    """The file that `--config` names by its path, else the preset of this name. Raises ConfigError for neither."""
    path = Path(name)
    preset = PRESETS / f"{name}.yaml"
    if path.exists() or path.name != name or path.suffix:
        return path
    if not preset.exists():
        names = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise ConfigError(f"--config: {name} is neither a file nor a preset; the presets are {names}")
    return preset
