"""Reads what XLA writes: the optimized program and the list of thunks. Text in, facts out; no jax."""

import re
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from math import prod

COLLECTIVES = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
VIEWS = ("parameter", "bitcast", "get-tuple-element", "tuple", "constant")
MOVES = ("copy", "copy-start", "transpose", "slice", "concatenate", "reverse", "pad")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of the entry computation."""

    line: str
    opcode: str
    shapes: tuple[str, ...]
    """The types of the arrays that it gives, such as "bf16[4096,8,64,128]"."""

    @property
    def only_moves(self) -> bool:
        """Whether it gives values as they were, by itself or as a fusion of nothing else."""
        return self.opcode in MOVES or re.search(r"calls=%(wrapped_)?(copy|transpose|slice)", self.line) is not None

    @property
    def elements(self) -> int:
        """The size of the largest array that it gives."""
        sizes = [re.findall(r"\d+", shape.split("[")[1]) for shape in self.shapes]
        return max((prod(map(int, size)) for size in sizes), default=0)


@dataclass(frozen=True, slots=True)
class Thunks:
    """What the runtime runs of a program."""

    graphs: int
    """CUDA graphs."""
    outside: dict[str, int]
    """Thunks beside the graphs, by kind."""
    launches: int
    """Kernels, in graphs or not."""


def entry(program: str) -> list[Instruction]:
    """The instructions of the entry computation that make something; views of what is there are left out."""
    instructions = []
    for line in program.split("\nENTRY", 1)[1].splitlines()[1:]:
        match = re.match(r"\s*(?:ROOT )?%\S+ = (.*?) ([a-z][\w-]*)\((?=%|\)|\d)", line)
        if match and match[2] not in VIEWS:
            instructions.append(Instruction(line.strip(), match[2], tuple(re.findall(r"\w+\[[\d,]*\]", match[1]))))
    return instructions


def copies(program: str, pages: str, weights: Set[str], big: int) -> list[str]:
    """Instructions that copy what must lie still: pages made by anything but a scatter, anything of a weight's
    shape, and whatever moves at least `big` elements and computes nothing.
    """
    return [
        each.line[:200]
        for each in entry(program)
        if (pages in each.shapes and "scatter" not in each.line)
        or not weights.isdisjoint(each.shapes)
        or (each.only_moves and each.elements >= big)
    ]


def page_writes(program: str, pages: str) -> int:
    """How many instructions give an array of the shape of a layer's pages."""
    return sum(pages in each.shapes for each in entry(program))


def collectives(program: str) -> dict[str, int]:
    """By kind and the type that crosses, as "all-reduce bf16"; of all computations."""
    pattern = rf"= \(*(\w+)\[[^\n]*? ({COLLECTIVES})(?:-start)?\("
    return dict(Counter(f"{kind} {dtype}" for dtype, kind in re.findall(pattern, program)))


def pallas_calls(program: str) -> dict[str, int]:
    """Calls of each Pallas kernel, by its name."""
    return dict(Counter(re.findall(r'custom_call_target="__gpu\$xla\.gpu\.triton"[^\n]*?/(\w+)/pallas_call"', program)))


def custom_calls(program: str) -> dict[str, int]:
    """All custom calls by target: library calls, and kernels of any making."""
    return dict(Counter(re.findall(r'custom_call_target="([^"]+)"', program)))


def atomic_kernels(ptx: str) -> list[str]:
    """The kernels of some PTX that have an atomic instruction, or a reduction in memory."""
    _, *kernels = re.split(r"\.entry ", ptx)
    return [kernel.split("(", 1)[0] for kernel in kernels if re.search(r"^\s*(@\S+ )?(atom|red)\.", kernel, re.M)]


def thunks(text: str) -> Thunks:
    """From XLA's dump `*.thunk_sequence*.txt`."""
    lines = text.splitlines()
    outside = Counter(match[1] for line in lines if (match := re.match(r"\d+: k(\w+)", line)))
    graphs = outside.pop("CommandBuffer", 0)
    return Thunks(graphs, dict(outside), sum(bool(re.search(r"\bk(Custom)?Kernel\b", line)) for line in lines))
