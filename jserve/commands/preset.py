"""The presets that come with jserve: files of `presets/`, which `--config` finds by their names."""

from pathlib import Path

from jserve.errors import ConfigError

PRESETS = Path(__file__).with_name("presets")


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
