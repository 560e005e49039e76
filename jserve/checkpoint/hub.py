"""Models by the names that they have on the Hugging Face hub: which of a repository's files are needed, and their copy.

`ORG/NAME` is a repository, `ORG/NAME:Q4_K_M` the GGUF file of that kind in it; `hf.co/` may stand in front, as Ollama
writes it. `huggingface_hub` does the transfers, and so `HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean
what they mean everywhere. It is imported only where a name is looked up: no other start waits for it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from jserve.errors import CheckpointError

logger = logging.getLogger(__name__)

_SITES = ("https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/")
_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::([\w.-]{1,64}))?")
_KIND = re.compile(r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|BF16|F16|F32|MXFP4\w*))(?=[-._/]|$)", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
_PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0")
"""The kind that a GGUF repository gives where none is named: Ollama's choice first."""
_TEXTS = re.compile(
    r"[^/]+\.(json|jinja|model|tiktoken)|(merges|vocab)\.txt|chat_template[^/]*|additional_chat_templates/.+"
)
"""Configuration, tokenizer and templates of a folder in Hugging Face's format."""
_MODULES = re.compile(r"\d+_[^/]+/(config\.json|model\.safetensors)")
"""What a model for embeddings does after its encoder (Sentence Transformers)."""
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, and the kind of GGUF file that is meant, "" where none is named."""

    repository: str
    kind: str

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Raises CheckpointError where `text` is no such name."""
        bare = _without_site(text)
        name = _NAME.fullmatch(bare)
        if name is None:
            raise CheckpointError(f"{text[:200]} is not a name on the hub: ORG/NAME or hf.co/ORG/NAME:Q4_K_M")
        return cls(name[1], name[2] or "")


def is_hub_name(model: str) -> bool:
    """Whether `model` names a repository, and not something on this machine."""
    if _without_site(model) != model:
        return True
    path = Path(model)
    is_local = (
        path.exists() or path.parts[:1] in ((".",), ("..",)) or Path(path.parts[0] if path.parts else "").is_dir()
    )
    return not is_local and not model.endswith(".gguf") and _NAME.fullmatch(model) is not None


def fetch(model: str, *, revision: str | None = None, folder: str | None = None) -> Path:
    """The folder or GGUF file of a name, with what is not in the cache yet copied there and checked.

    `folder` is the cache, by default `HF_HOME`'s. Raises CheckpointError: no such repository or revision, no right to
    it, no files that can be served, no network, or a file that is not what the hub says it is.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    name = HubName.parse(model)
    with told(name, revision):
        files = list_files(name, revision)
        if files is None:
            return _cached(name, revision, folder)
        wanted = choose_files(name, list(files))
        fresh = [
            file for file in wanted
            if not isinstance(try_to_load_from_cache(name.repository, file, folder, revision), str)
        ]  # fmt: skip
        if fresh:
            size = sum(files[file].size for file in fresh)
            logger.info("fetching %d files of %s, %.1f MB", len(fresh), name.repository, size / 1e6)
        copied = snapshot_download(name.repository, revision=revision, cache_dir=folder, allow_patterns=wanted)
    for file in fresh:
        _check(Path(copied, file), files[file], name)
    return root_of(Path(copied), wanted)


def choose_files(name: HubName, files: Sequence[str]) -> list[str]:
    """Those of a repository's files that a start needs. Raises CheckpointError where there are no weights to load."""
    gguf = [file for file in files if file.endswith(".gguf") and "mmproj" not in file.lower()]
    weights = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    if name.kind or (gguf and not weights):
        return _gguf_files(name, gguf)
    named = [file for file in weights if file.startswith("model")]
    if not weights:
        others = sorted(
            {Path(file).suffix for file in files if Path(file).suffix in (".bin", ".pt", ".pth", ".onnx", ".npz")}
        )
        raise CheckpointError(
            f"{name.repository} has no safetensors and no GGUF files"
            + (f", only {', '.join(others)}, which can run code or are another program's" if others else "")
            + "; name a repository that has them"
        )
    return sorted(
        [*(named or weights), *(file for file in files if _TEXTS.fullmatch(file) or _MODULES.fullmatch(file))]
    )


def _gguf_files(name: HubName, files: Sequence[str]) -> list[str]:
    """The file of the wanted kind, in all its parts."""
    models: dict[str, list[str]] = {}
    for file in sorted(files):
        models.setdefault(_PART.sub("", file), []).append(file)
    kinds = {kind[1].upper(): model for model in models if (kind := _KIND.search(model.removesuffix(".gguf")))}
    if name.kind.upper() in kinds:
        return models[kinds[name.kind.upper()]]
    if not name.kind:
        if len(models) == 1:
            return next(iter(models.values()))
        for preferred in _PREFERRED:
            if preferred in kinds:
                return models[kinds[preferred]]
    there = ", ".join(sorted(kinds)) or "none"
    wanted = f"no GGUF file of the kind {name.kind}" if name.kind else "several GGUF files"
    raise CheckpointError(f"{name.repository} has {wanted}; these are there: {there}. Name one: {name.repository}:KIND")


@dataclass(frozen=True, slots=True)
class HubFile:
    """What the hub says of a file: its bytes, and their digest, which is None for small ones that git keeps."""

    size: int
    sha256: str | None


def list_files(name: HubName, revision: str | None) -> Mapping[str, HubFile] | None:
    """What a repository holds, None where the hub must not or cannot be reached and the cache has to do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(name.repository, revision=revision, files_metadata=True)
    except OfflineModeIsEnabled:
        logger.info("HF_HUB_OFFLINE is set: %s is taken from the cache", name.repository)
        return None
    except (_transfer_error(), ConnectionError) as error:
        if isinstance(error, HfHubHTTPError):
            raise
        logger.warning("the hub cannot be reached (%s): %s is taken from the cache", error, name.repository)
        return None
    return {
        file.rfilename: HubFile(file.size or 0, file.lfs.sha256 if file.lfs else None) for file in info.siblings or ()
    }


def _cached(name: HubName, revision: str | None, folder: str | None) -> Path:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound, LocalEntryNotFoundError

    wanted = revision or "main"
    with suppress(CacheNotFound):
        repositories = scan_cache_dir(folder).repos
        kept = [repo for repo in repositories if repo.repo_type == "model" and repo.repo_id == name.repository]
        for copy in (copy for repo in kept for copy in repo.revisions):
            if wanted in copy.refs or copy.commit_hash.startswith(wanted):
                files = [str(file.file_path.relative_to(copy.snapshot_path)) for file in copy.files]
                return root_of(copy.snapshot_path, choose_files(name, sorted(files)))
    raise LocalEntryNotFoundError(f"{name.repository} is not in the cache")


def root_of(folder: Path, files: Sequence[str]) -> Path:
    """What `--model` would be given: the first GGUF file, or else the folder."""
    return next((folder / file for file in files if file.endswith(".gguf")), folder)


def _check(path: Path, file: HubFile, name: HubName) -> None:
    """Refuse a copy that is not what the hub says, and remove it, so that the next start fetches it again."""
    blob, digest = path.resolve(), hashlib.sha256()
    with blob.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if file.sha256 is not None and digest.hexdigest() != file.sha256:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path.name} of {name.repository} arrived with the SHA-256 {digest.hexdigest()}, but the hub says "
            f"{file.sha256}; the copy was removed, start again to fetch it anew"
        )


@contextmanager
def told(name: HubName, revision: str | None) -> Iterator[None]:
    """What goes wrong with the hub, as a sentence that says what to do."""
    from huggingface_hub import errors

    repository, at = name.repository, f" at the revision {revision}" if revision else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its terms on its page, and set HF_TOKEN to a token of that account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {revision}; give a branch, a tag or a commit") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the hub has no {repository}, or it is private: check the name (there is no folder of that name here), or "
            "set HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository}{at} is not in the cache, and the hub cannot be asked: fetch it where there is a network "
            f"(`jserve pull {repository}`), or unset HF_HUB_OFFLINE"
        ) from error
    except (_transfer_error(), OSError) as error:
        raise CheckpointError(
            f"{repository}{at} could not be fetched: {error}. What has arrived is kept; start again to go on"
        ) from error


def _transfer_error() -> type[Exception]:
    """What the HTTP library of `huggingface_hub` raises: httpx, or in newer releases httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def _without_site(text: str) -> str:
    for site in _SITES:
        if text.startswith(site):
            return text.removeprefix(site)
    return text
