"""The plan of the house: which room stands on which floor. `test_architecture.py` holds the code to it.

`python -m tests.floors` writes its drawing into README.md and docs/design.md.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DRAWN_IN = (ROOT / "README.md", ROOT / "docs" / "design.md")
_MARKED = re.compile(r"(<!-- floors -->\n).*?(<!-- /floors -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Floor:
    """Rooms that import only from lower floors and not from each other; folders end with a slash."""

    rooms: tuple[str, ...]
    holds: str

    def modules(self, package: str) -> set[str]:
        """The modules that the rooms of this floor begin with."""
        names = (room.removesuffix("/").removesuffix(".py") for room in self.rooms)
        return {name if name == "pallas_kernels" else f"{package}.{name}" for name in names}


HOUSE = (
    Floor(("pallas_kernels/", "protocol.py", "errors.py", "log.py", "version.py"), "kernels; messages; errors"),
    Floor(
        ("config/", "checkpoint/", "quant/", "constrain/", "batch.py", "ipc.py", "progress.py"),
        "flags and model files, checked; masks",
    ),
    Floor(("layers/", "schedule/", "text/"), "flax.nnx; who runs next; tokenizers, templates, grammars"),
    Floor(("models/", "api/"), "one file a family; HTTP and the engine's supervision (no jax)"),
    Floor(("weights/",), "files into sharded arrays"),
    Floor(("runtime/",), "the only folder that compiles: step, sampler, memory, programs"),
    Floor(("engine/",), "the loop; the only folder that knows schedule/ and runtime/"),
    Floor(("llm.py",), "the offline API over the same engine"),
    Floor(("commands/",), "one file a command: its options, its work, its printing"),
    Floor(("cli.py",), "the table of commands"),
)
"""From the ground up."""
API = (
    Floor(("json_writer.py", "life.py"), ""),
    Floor(("errors.py", "access/", "store/"), ""),
    Floor(("settings.py", "call.py"), ""),
    Floor(("supervisor/",), ""),
    Floor(("model/", "telemetry/"), ""),
    Floor(("generation/",), ""),
    Floor(("context.py",), ""),
    Floor(("http/", "probes.py", "notify_socket.py"), ""),
    Floor(("openai/",), ""),
    Floor(("anthropic/", "ollama/"), ""),
    Floor(("app.py",), ""),
    Floor(("server.py",), ""),
)
TEXT = (
    Floor(("tokenizers/", "output/"), ""),
    Floor(("templates/", "save.py"), ""),
    Floor(("grammars/", "load.py"), ""),
    Floor(("tools/",), ""),
)
PLANS = {"jserve": HOUSE, "jserve.api": API, "jserve.text": TEXT}


def drawing() -> str:
    """The house as text, the top floor first."""
    rows = [(number, "  ".join(floor.rooms), floor.holds) for number, floor in enumerate(HOUSE, 1)]
    width = max(len(rooms) for _, rooms, _ in rows if len(rooms) < 50)
    lines = [f"{number:>2}  {rooms:<{width}}  {holds}".rstrip() for number, rooms, holds in reversed(rows)]
    return "```\n" + "\n".join(lines) + "\n```\n"


def drawn_in(text: str) -> str:
    """The drawing as it stands in a page, between its marks; "" where there are none."""
    marked = _MARKED.search(text)
    return "" if marked is None else marked[0].removeprefix(marked[1]).removesuffix(marked[2])


def main() -> None:
    """Write the drawing where it is shown."""
    for page in DRAWN_IN:
        page.write_text(_MARKED.sub(lambda marked: marked[1] + drawing() + marked[2], page.read_text()))


if __name__ == "__main__":
    main()
