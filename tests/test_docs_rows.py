"""docs/models.md and docs/quantization.md: each row of what is supported names tests that pytest collects, and nothing
that the registries have is without a row.
"""

import re
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path

import pytest

from jserve.checkpoint.gguf.encoder_families import ENCODER_FAMILIES
from jserve.checkpoint.gguf.families import FAMILIES
from jserve.config import QUANTIZATIONS, QUANTIZE_BITS
from jserve.models.registry import ARCHITECTURES, CLASSIFIERS, ENCODERS
from jserve.quant.detect import STORED

ROOT = Path(__file__).parent.parent
PAGES = ("models.md", "quantization.md")
NAMED = re.compile(r"`([\w/]*(?:\.py)?)::([^`]+)`")
"""FILE::CASE, or ::CASE of the file before."""


def tables(text: str) -> list[list[list[str]]]:
    """Each table of a page by its rows and their cells, the titles first."""
    parsed: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            parsed[-1].append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif parsed[-1]:
            parsed.append([])
    return [[row for row in table if set("".join(row)) - set("-: ")] for table in parsed if table]


def supported(text: str) -> list[tuple[str, str]]:
    """(all cells but the last, the tests) of every row of the tables that name tests."""
    tested = [table for table in tables(text) if table[0][-1] == "tests"]
    return [("|".join(row[:-1]), row[-1]) for table in tested for row in table[1:]]


def named_tests(cell: str) -> list[tuple[str, str]]:
    """(file, case or function) of each."""
    named: list[tuple[str, str]] = []
    for file, case in NAMED.findall(cell):
        named.append((file or named[-1][0], case))
    return named


@cache
def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@cache
def collected() -> dict[str, set[str]]:
    """By file, the names of what pytest collects in those that the pages name, slow ones included."""
    rows = [cell for name in PAGES for _, cell in supported(page(name))]
    files = sorted({f"tests/{file}" for cell in rows for file, _ in named_tests(cell)})
    missing = [file for file in files if not (ROOT / file).is_file()]
    assert not missing, f"the pages name files that are not there: {missing}"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "slow or not slow", *files]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    by_file: dict[str, set[str]] = {}
    for line in ran.stdout.splitlines():
        if "::" in line:
            file, _, test = line.partition("::")
            by_file.setdefault(file.removeprefix("tests/"), set()).add(test)
    return by_file


def without_a_test(rows: list[tuple[str, str]], known: dict[str, set[str]]) -> list[str]:
    """What is wrong with rows: those that name no test, and names of none."""
    wrong = [f"{what[:60]} names no test" for what, cell in rows if not named_tests(cell)]
    for what, cell in rows:
        for file, case in named_tests(cell):
            if not any(is_named(case, test) for test in known.get(file, ())):
                wrong.append(f"{what[:60]} names {file}::{case}, which is not collected")
    return wrong


def is_named(case: str, test: str) -> bool:
    """Whether `case` is the function, or what one of its parametrizations is called."""
    function, _, ids = test.partition("[")
    return case == function or f"-{case}-" in f"-{ids.removesuffix(']')}-"


def without_a_row(wanted: Collection[str], rows: list[tuple[str, str]]) -> list[str]:
    described = {word for what, _ in rows for word in re.findall(r"`([^`]+)`", what)}
    return [name for name in wanted if name not in described]


@pytest.mark.parametrize("name", PAGES)
def test_every_row_names_tests_that_are_collected(name: str) -> None:
    rows = supported(page(name))
    assert len(rows) > 10
    assert without_a_test(rows, collected()) == []


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_whole(name: str) -> None:
    """A blank line in one makes a second table, whose first row is no title."""
    lines = page(name).splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|") and not lines[number - 1].startswith("|"):
            assert re.fullmatch(r"\|[-| :]+\|", lines[number + 1]), f"{name}:{number + 1} begins a table without titles"
        if line.startswith("#"):
            assert number == 0 or not lines[number - 1], f"{name}:{number + 1} is a heading without a line before it"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("models.md", (*ARCHITECTURES, *ENCODERS, *CLASSIFIERS)),
        ("models.md", [name for name in (*FAMILIES, *ENCODER_FAMILIES) if name != "mixtral"]),  # "llama" with experts
        ("quantization.md", STORED),
        ("quantization.md", (*QUANTIZATIONS, *QUANTIZE_BITS)),
    ],
    ids=["architectures", "architectures in GGUF", "stored formats", "flags"],
)
def test_everything_registered_has_a_row(name: str, wanted: Collection[str]) -> None:
    assert without_a_row(wanted, supported(page(name))) == []


ROW = "| names | tests |\n|---|---|\n| `LlamaForCausalLM` | {} |\n"


@pytest.mark.parametrize(
    ("tests", "wrong"),
    [
        ("`models/test_parity.py::llama`", None),
        ("`models/test_parity.py::check`, `::llama, yarn`", None),
        ("tiny random models", "names no test"),
        ("`models/test_parity.py::llama 4`", "which is not collected"),
        ("`models/test_parity.py::llama`, `::yarn`", "which is not collected"),
        ("`models/test_other.py::llama`", "which is not collected"),
    ],
)
def test_a_row_whose_test_is_gone_is_found(tests: str, wrong: str | None) -> None:
    known = {"models/test_parity.py": {"check[llama]", "check[llama, yarn-2]"}}
    faults = without_a_test(supported(ROW.format(tests)), known)
    assert [each for each in faults if wrong is None or wrong not in each] == []
    assert bool(faults) == (wrong is not None)


def test_a_family_without_a_row_is_found() -> None:
    rows = supported(ROW.format("`a.py::b`"))
    assert without_a_row(["LlamaForCausalLM", "OtherForCausalLM"], rows) == ["OtherForCausalLM"]
