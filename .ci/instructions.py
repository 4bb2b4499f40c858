"""Instructions an element: what a thread issues for each token of its slice, counted in machine code.

Counted is the main program: all instructions up to the trap behind its end, without the padding, over the
tokens that a thread handles (SLICE / threads of the program). A loop, from the target of a backward branch
to the branch, counts as often as it turns (TURNS), once where that is not known. So the addresses and the
reductions of a slice are in the number, spread over its tokens: what a program issues for its slice.

Not counted apart: both sides of a forward branch are taken to be run (rows that are done, and slices
outside a support, return early), and an instruction counts as one whatever its throughput (an `EX2` is
a quarter rate one). Subroutines behind the end of the main program, the slow paths of divisions, are left
out. On CDNA vector and scalar instructions count alike, and a thread is a lane of a 64-wide wave.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TURNS = {"round_kernel": 16, "ratio_sums_kernel": 32}
"""How often the loop of a kernel turns: over POINTS, over KNOTS."""


class Loop(NamedTuple):
    """The first instruction of a loop, and its backward branch."""

    first: int
    last: int


class Program(NamedTuple):
    """The main program of a kernel."""

    length: int
    loops: list[Loop]


SASS_LABEL = re.compile(r"(\.L_x_\d+):")
SASS_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?(.*?)\s*;")
SASS_TARGET = re.compile(r"BRA\b.*`\((\.L_x_\d+)\)")
CDNA_LABEL = re.compile(r"(\.LBB\w+):")
CDNA_INSTRUCTION = re.compile(r"\t((?:v|s|ds|global|buffer|flat)_\w+.*)")
CDNA_TARGET = re.compile(r"s_c?branch\w* (\.LBB\w+)")


def instructions_per_element(kernel: str, text: str, elements: float) -> float:
    """Instructions a thread issues for each of its `elements`, from disassembled or assembly text."""
    cdna = "amdgcn" in text
    program = _cdna(text) if cdna else _sass(text)
    count = program.length
    for loop in program.loops:
        count += (TURNS.get(kernel, 1) - 1) * (loop.last - loop.first + 1)
    return count / elements


def _sass(text: str) -> Program:
    program, length = [], 0
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := SASS_LABEL.match(line):
            labels[label[1]] = length
        elif found := SASS_INSTRUCTION.match(line):
            target = SASS_TARGET.match(found[1])
            # a branch to itself stands behind the end
            if target and labels.get(target[1]) == length:
                break
            program.append(found[1])
            length += 1
    return _loops(program, labels, SASS_TARGET)


def _cdna(text: str) -> Program:
    program: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := CDNA_LABEL.match(line):
            labels[label[1]] = len(program)
        elif (found := CDNA_INSTRUCTION.match(line)) and not found[1].startswith("s_nop"):
            program.append(found[1])
            if found[1].startswith("s_endpgm"):
                end = len(program)
    return _loops(program[:end], labels, CDNA_TARGET)


def _loops(program: list[str], labels: dict[str, int], target: re.Pattern[str]) -> Program:
    loops = [
        Loop(labels[branch[1]], place)
        for place, instruction in enumerate(program)
        if (branch := target.match(instruction)) and labels.get(branch[1], place + 1) <= place
    ]
    return Program(len(program), loops)
