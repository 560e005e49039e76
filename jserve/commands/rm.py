"""`jserve rm NAME`: a model of the hub out of this machine's cache."""

from collections.abc import Sequence

from jserve.checkpoint.hub import HubName
from jserve.commands.parser import Parser
from jserve.errors import CheckpointError, ConfigError


def run(argv: Sequence[str]) -> None:
    """Remove all copies of a repository. Raises CheckpointError where there is none."""
    parser = Parser(prog="jserve rm", description="Remove a model of the hub from the cache.", allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="ORG/NAME, as `jserve list` shows it")
    parser.add_argument("--download-dir", metavar="DIR", help="where models of the hub are kept (default: HF_HOME's)")
    options = parser.parse_args(list(argv))
    if options.name.startswith("ollama:"):
        raise ConfigError(f"Ollama keeps that model: `ollama rm {options.name.removeprefix('ollama:')}`")
    name = HubName.parse(options.name)
    if name.kind:
        raise ConfigError(f"a repository is removed as a whole: jserve rm {name.repository}")
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(options.download_dir)
    except CacheNotFound as error:
        raise CheckpointError(f"there is no cache of the hub here: {error}") from error
    copies = [
        copy.commit_hash
        for repository in cache.repos
        if repository.repo_type == "model" and repository.repo_id == name.repository
        for copy in repository.revisions
    ]
    if not copies:
        raise CheckpointError(f"{name.repository} is not in the cache; `jserve list` shows what is")
    strategy = cache.delete_revisions(*copies)
    strategy.execute()
    print(f"removed {name.repository}, {strategy.expected_freed_size_str}B")
