"""The floors of the house: a module imports only from lower floors, and jax stays where it belongs."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.floors import DRAWN_IN, PLANS, ROOT, Floor, drawing, drawn_in

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
LONGEST = 400


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


def room_of(module: str, package: str, plan: tuple[Floor, ...]) -> str | None:
    """The room of a plan that a module belongs to; None outside of it."""
    rooms = {room for floor in plan for room in floor.modules(package)}
    return next((room for room in rooms if module == room or module.startswith(f"{room}.")), None)


def floor_of(room: str, package: str, plan: tuple[Floor, ...]) -> int:
    return next(number for number, floor in enumerate(plan, 1) if room in floor.modules(package))


@pytest.mark.parametrize("package", PLANS)
def test_each_room_imports_only_from_lower_floors(package: str) -> None:
    plan = PLANS[package]
    for path in sources():
        module = module_of(path)
        if not module.startswith((f"{package}.", "pallas_kernels")) or module.endswith("__main__"):
            continue
        here = room_of(module, package, plan)
        if here is None:
            assert module.startswith("pallas_kernels"), f"{path} stands on no floor; give it one"
            continue
        for name in imports_of(path):
            there = room_of(name, package, plan)
            if there is None or there == here:
                continue
            below, above = floor_of(there, package, plan), floor_of(here, package, plan)
            assert below < above, f"{path}: {here} (floor {above}) imports {there} (floor {below})"


def test_every_room_of_the_plan_exists() -> None:
    for package, plan in PLANS.items():
        for room in [room for floor in plan for room in floor.modules(package)]:
            place = ROOT / room.replace(".", "/")
            assert place.is_dir() or place.with_suffix(".py").exists(), room


@pytest.mark.parametrize("page", DRAWN_IN, ids=lambda page: page.name)
def test_pages_show_the_plan_that_the_code_is_held_to(page: Path) -> None:
    assert drawn_in(page.read_text()) == drawing(), "write it anew: python -m tests.floors"


@pytest.mark.parametrize("folder", WITHOUT_JAX)
def test_the_host_side_never_imports_device_libraries(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        imported = {name.split(".")[0] for name in imports_of(path)} & DEVICE_LIBRARIES
        assert not imported, f"{path} imports {imported}"


def test_files_that_both_processes_read_never_import_device_libraries() -> None:
    for name in HOST_FILES:
        imported = {name.split(".")[0] for name in imports_of(ROOT / "jserve" / name)} & DEVICE_LIBRARIES
        assert not imported, f"{name} imports {imported}"


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
    assert not circle_in({module_of(path): set(imports_of(path)) for path in sources()})


def test_no_circle_between_folders() -> None:
    folders: dict[str, set[str]] = defaultdict(set)
    modules = {module_of(path): path for path in sources()}

    def folder_of(module: str) -> str:
        return str(modules[module].parent.relative_to(ROOT))

    for module, path in modules.items():
        if path.name in ("__init__.py", "__main__.py"):
            continue  # a package's names, and the entries on top
        for name in set(imports_of(path)) & modules.keys():
            # A folder may use what its inner folders hold, or they what it holds: they are one room.
            here, there = folder_of(module), folder_of(name)
            if not (here.startswith(f"{there}/") or there.startswith(f"{here}/")):
                folders[here].add(there)
    assert not circle_in(folders)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The names along a circle; [] where there is none."""
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, set()) & graph.keys() - {name}):
            if circle := visit(other, (*trail, name)):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(graph) if (circle := visit(name, ()))), [])


def test_no_file_needs_a_map() -> None:
    too_long = {str(path): count for path in sources() if (count := len(path.read_text().splitlines())) > LONGEST}
    assert not too_long, too_long


def test_no_names_without_a_noun() -> None:
    banned = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in sources() if path.stem in banned]
