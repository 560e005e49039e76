"""The floors of the house: a module imports only from lower floors, and jax stays where it belongs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"pallas_kernels", "jserve.protocol", "jserve.errors", "jserve.version", "jserve.log"},
    {"jserve.batch", "jserve.config"},
    {"jserve.quant", "jserve.ipc", "jserve.checkpoint", "jserve.progress"},
    {"jserve.constrain"},
    {"jserve.layers", "jserve.schedule", "jserve.text"},
    {"jserve.models", "jserve.api"},
    {"jserve.weights"},
    {"jserve.runtime"},
    {"jserve.engine"},
    {"jserve.llm"},
    {"jserve.commands"},
    {"jserve.cli"},
    {"jserve.__main__", "jserve"},
]
WITHOUT_JAX = ("jserve/api", "jserve/text", "jserve/schedule", "jserve/checkpoint", "jserve/constrain")
HOST_FILES = (
    "protocol.py",
    "errors.py",
    "ipc.py",
    "config/engine.py",
    "config/model.py",
    "config/fields.py",
    "config/deepseek.py",
    "log.py",
    "cli.py",
    "version.py",
    "__init__.py",
    "__main__.py",
)
DEVICE_LIBRARIES = {"jax", "flax", "torch", "optax", "orbax"}
LONGEST = 450


def sources() -> list[Path]:
    return sorted([*(ROOT / "jserve").rglob("*.py"), *(ROOT / "pallas_kernels").rglob("*.py")])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in it; TYPE_CHECKING blocks left out."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in _outside_type_checking(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            yield ".".join(part for part in (base, node.module) if part)


def _outside_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _outside_type_checking(node)


def unit_of(module: str) -> str | None:
    """The room of the plan that a module belongs to: the longest name in FLOORS that it starts with."""
    rooms = [room for floor in FLOORS for room in floor]
    fitting = [room for room in rooms if module == room or (room != "jserve" and module.startswith(f"{room}."))]
    return max(fitting, key=len, default=None)


def floor_of(room: str) -> int:
    return next(number for number, floor in enumerate(FLOORS, 1) if room in floor)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_from_its_own_room_or_lower_floors(path: Path) -> None:
    here = unit_of(module_of(path))
    assert here is not None, f"{path} stands on no floor; give it one"
    for name in imports_of(path):
        there = unit_of(name)
        if there is None or there == here:
            continue
        # batch.py names the kernels' own plan type: both stand on the ground.
        lower = floor_of(there) < floor_of(here) or (here, there) == ("jserve.batch", "pallas_kernels")
        assert lower, f"{here} (floor {floor_of(here)}) imports {there} (floor {floor_of(there)})"


@pytest.mark.parametrize("folder", WITHOUT_JAX)
def test_the_host_side_never_imports_device_libraries(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        found = {name.split(".")[0] for name in imports_of(path)} & DEVICE_LIBRARIES
        assert not found, f"{path} imports {found}"


def test_files_that_both_processes_read_never_import_device_libraries() -> None:
    for name in HOST_FILES:
        found = {name.split(".")[0] for name in imports_of(ROOT / "jserve" / name)} & DEVICE_LIBRARIES
        assert not found, f"{name} imports {found}"


def test_kernels_import_nothing_of_jserve() -> None:
    for path in (ROOT / "pallas_kernels").rglob("*.py"):
        assert not [name for name in imports_of(path) if name.split(".")[0] == "jserve"], path


def test_only_the_runtime_compiles_and_the_command_that_quantizes() -> None:
    compiling = [ROOT / "jserve" / "runtime", ROOT / "jserve" / "commands" / "quantize"]
    for path in (ROOT / "jserve").rglob("*.py"):
        if any(path.is_relative_to(folder) for folder in compiling):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("jax", "jit"), ("nnx", "jit")}, f"{path}:{node.lineno}"


def test_no_circle_between_modules() -> None:
    graph = {module_of(path): set(imports_of(path)) for path in sources()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for name in graph.get(module, set()) & graph.keys():
            if name != module:
                visit(name, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_no_file_needs_a_map() -> None:
    too_long = {str(path): count for path in sources() if (count := len(path.read_text().splitlines())) > LONGEST}
    assert not too_long, too_long


def test_no_names_without_a_noun() -> None:
    banned = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in sources() if path.stem in banned]
