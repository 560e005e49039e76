"""Reads model files on the host: Hugging Face directories, GGUF files and Ollama's store, one interface for all.

Names, shapes and values come out as Hugging Face writes them, whatever the file. Never imports jax, torch or
transformers; numpy and gguf are imported only when tensors are read, so the API process can look at metadata.
"""

from pathlib import Path

from jserve.checkpoint.adapter import ADAPTER, adapter_refusal
from jserve.checkpoint.base import Checkpoint, TensorInfo
from jserve.checkpoint.classifier import Classifier
from jserve.checkpoint.converted import WEIGHTS, ConvertedCheckpoint, is_converted
from jserve.checkpoint.embedder import Embedder, ranking_tokens
from jserve.checkpoint.gguf.split import first_part, without_later_parts
from jserve.checkpoint.mapped_file import MappedFile
from jserve.checkpoint.ollama_store import (
    OllamaModel,
    find_ollama_model,
    is_ollama_name,
    keep_ollama_model,
    kept_ollama_model,
    pulled_ollama_models,
)
from jserve.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "Classifier",
    "Embedder",
    "OllamaModel",
    "TensorInfo",
    "find_gguf",
    "find_ollama_model",
    "is_gguf_file",
    "is_model_folder",
    "is_ollama_name",
    "keep_ollama_model",
    "kept_ollama_model",
    "open_checkpoint",
    "pulled_ollama_models",
    "ranking_tokens",
    "weight_files",
]


def open_checkpoint(path: str | Path, *, needs_weights: bool = True, architecture: str | None = None) -> Checkpoint:
    """Open a Hugging Face directory, a GGUF file, a directory that holds exactly one (or the parts of one),
    `ollama:NAME[:TAG]`, or what `jserve convert` wrote.

    Without `needs_weights` a directory may hold `config.json` alone; it then has no tensors. `architecture` stands in
    place of the one that a Hugging Face directory names.

    Reads headers only; a damaged or unsupported file raises CheckpointError here and not at `read`.
    """
    gguf = find_gguf(path)
    if architecture is not None and (gguf is not None or is_converted(Path(path))):
        raise CheckpointError(
            f"{path} says itself what it is; --architecture is for a directory in Hugging Face format"
        )
    if gguf is not None:
        from jserve.checkpoint.gguf.checkpoint import GgufCheckpoint

        return GgufCheckpoint(gguf)
    if is_converted(Path(path)):
        return ConvertedCheckpoint(Path(path))
    from jserve.checkpoint.huggingface import HuggingFaceCheckpoint

    return HuggingFaceCheckpoint(Path(path), needs_weights=needs_weights, architecture=architecture)


def find_gguf(path: str | Path) -> Path | None:
    """The GGUF file that `path` means, or None where it means a Hugging Face directory.

    Raises CheckpointError where the path does not exist, is some other file, or leaves a choice open.
    """
    if is_ollama_name(path):
        return _require_gguf(find_ollama_model(path).gguf)
    path = Path(path)
    if path.is_file():
        return first_part(_require_gguf(path))
    if not path.is_dir():
        raise CheckpointError(
            f"{path} does not exist; --model takes a local directory in Hugging Face format, a .gguf file, or "
            "ollama:NAME for a model that Ollama has pulled, or a name on the hub (ORG/NAME)"
        )
    files = without_later_parts(sorted(path.glob("*.gguf")))
    # GGUF files are often published with the original's config.json beside them.
    if (path / "config.json").exists() and (not files or any(path.glob("*.safetensors"))):
        return None
    if not files and (path / ADAPTER).exists():
        raise CheckpointError(adapter_refusal(path))
    if len(files) > 1:
        raise CheckpointError(
            f"{path} holds {len(files)} GGUF files ({_some([file.name for file in files])}); name one of them"
        )
    return files[0] if files else None


def is_model_folder(path: Path) -> bool:
    """Whether a directory is a model, or what is left of one, and not one that holds models."""
    return is_converted(path) or any((path / name).is_file() for name in ("config.json", ADAPTER))


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that hold the tensors."""
    if checkpoint.format == "converted":
        return sorted(file for file in (checkpoint.path / WEIGHTS).rglob("*") if file.is_file())
    return sorted({info.file for info in checkpoint.tensors().values()})


def is_gguf_file(path: Path) -> bool:
    """Whether the file starts with the GGUF magic, whatever its name (Ollama's store has no suffixes)."""
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def _require_gguf(path: Path) -> Path:
    if is_gguf_file(path):
        return path
    if path.suffix == ".gguf":
        with MappedFile(path) as file:
            raise CheckpointError(f"{path} is not a GGUF file: it starts with {bytes(file.slice(0, 4))!r}")
    raise CheckpointError(
        f"{path} is a file but not a GGUF file; for safetensors give the directory that holds config.json"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
