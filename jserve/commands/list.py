"""`jserve list`: models on this machine that have a name, in the hub's cache and in Ollama's store."""

import time
from collections.abc import Iterator, Sequence

from jserve.checkpoint.ollama_store import pulled_models
from jserve.commands.parser import Parser
from jserve.commands.tables import print_table


def run(argv: Sequence[str]) -> None:
    """Print a line for each, the newest first within each source."""
    parser = Parser(prog="jserve list", description="List models that are on this machine.", allow_abbrev=False)
    parser.add_argument("--download-dir", metavar="DIR", help="where models of the hub are kept (default: HF_HOME's)")
    options = parser.parse_args(list(argv))
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAME", "SIZE", "CHANGED"):
        table.add_column(column, overflow="fold")
    for name, size, changed in [*_of_hub(options.download_dir), *_of_ollama()]:
        table.add_row(name, f"{size / 1e9:.2f} GB", time.strftime("%Y-%m-%d %H:%M", time.localtime(changed)))
    print_table(table)


def _of_hub(folder: str | None) -> Iterator[tuple[str, int, float]]:
    """Repositories of the cache that hold weights."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(folder).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repository: -repository.last_modified):
        files = {file.file_name for copy in repository.revisions for file in copy.files}
        if repository.repo_type == "model" and any(name.endswith((".safetensors", ".gguf")) for name in files):
            yield repository.repo_id, repository.size_on_disk, repository.last_modified


def _of_ollama() -> Iterator[tuple[str, int, float]]:
    for model in sorted(pulled_models(), key=lambda model: -model.manifest.stat().st_mtime):
        yield f"ollama:{model.name}", model.gguf.stat().st_size, model.manifest.stat().st_mtime
