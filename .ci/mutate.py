"""Mutation testing of the truncation and verification files: are their tests able to fail?

    python .ci/mutate.py                          every target, 12 mutants each
    python .ci/mutate.py kernels/top_h.py --most 40
    python .ci/mutate.py --budget 1200 --results bench/results/mutation.json

A mutant is one small change of a file's syntax tree. It is tried in a fork of this process, which has
imported torch and pytest but not warpdraft: the changed module is loaded in the place of the file, and
the file's own tests (exact enumeration and comparison with references; no GPU, no interpreter, no large
vocabularies) run until one fails. The file itself is never written. A run that takes `--slower` times as
long as that of the file as it is gets killed, for a mutant may never end; those are counted apart. Results
that are there already are kept, so that runs can be added to; a mutant that survives is listed with its
line and change.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.machinery
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
SEED = 7
LEAST_LIMIT = 10.0
"""Seconds that every run may take."""

OPTIMAL = ["test_optimal_transport", "test_ranks", "test_ratio_grid", "test_optimal"]
# where a subject has no test file of its own name
TESTS = {
    "kernels/support.py": ["test_truncation", "test_typical"],
    "kernels/prefix_search.py": ["test_top_p", "test_top_h", "test_row_stats"],
    "kernels/row_stats.py": [
        "test_row_stats",
        "test_top_h",
        "test_eta",
        "test_p_less",
        "test_top_n_sigma",
    ],
    "kernels/optimal_transport.py": ["test_acceptance", *OPTIMAL],
    "kernels/concave_majorant.py": OPTIMAL,
    "kernels/ranks.py": OPTIMAL,
    "kernels/ratio_grid.py": OPTIMAL,
    "kernels/recursive.py": ["test_recursive", "test_recursive_without_replacement"],
    "kernels/optimal.py": OPTIMAL,
    "decoders/verifiers/recursive.py": ["test_recursive", "test_greedy_drafts"],
    "decoders/verifiers/block.py": ["test_block", "test_optimal_block"],
}
RULES = [
    f"kernels/{name}.py"
    for name in [
        "top_h",
        "min_p",
        "top_k",
        "top_p",
        "top_n_sigma",
        "epsilon",
        "eta",
        "top_a",
        "p_less",
        "typical",
    ]
]
SUBJECTS = [
    "support",
    "prefix_search",
    "row_stats",
    "k_seq",
    "optimal",
    "optimal_transport",
    "concave_majorant",
    "ranks",
    "ratio_grid",
    "recursive",
    "block_verification",
    "draw",
    "entropy_temperature",
]
BATCHED = "test_the_batched_form_agrees_with_sort_and_scan"
TARGETS = [
    *RULES,
    *(f"kernels/{name}.py" for name in SUBJECTS),
    *sorted(
        f"decoders/verifiers/{path.name}" for path in (ROOT / "decoders/verifiers").glob("*.py")
    ),
]
# a kernel is not told by the verifier's scripted decisions (11 s), and a verifier not by hundreds of nodes that all
# go through the same lines (11 s)
OF_KERNELS = "not select_follows_the_closed_law and not hybrid"
OF_VERIFIERS = "not emitted_token_has_the_target_law"
SELECTED = {
    "kernels/concave_majorant.py": OF_KERNELS,
    "kernels/optimal.py": OF_KERNELS,
    "kernels/optimal_transport.py": OF_KERNELS,
    "kernels/ranks.py": OF_KERNELS,
    "kernels/ratio_grid.py": OF_KERNELS,
    "decoders/verifiers/optimal.py": OF_VERIFIERS,
}
# vocabularies that cost seconds and tell a mutant nothing that a smaller one does not
LEFT_OUT = "not 262144 and not 128256 and not 32000 and not triton and not interpreter"

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
REVERSED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
NAMES = {
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "argmin": "argmax",
    "argmax": "argmin",
    "minimum": "maximum",
    "maximum": "minimum",
    "any": "all",
    "all": "any",
    "exp": "expm1",
    "log1p": "log",
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        line: of the change.
        change: what was there and what is there now.
        tree: the changed module.
    """

    line: int
    change: str
    tree: ast.Module


def mutants_of(source: str) -> list[Mutant]:
    """Every change that the operators make to a module, each in a tree of its own."""
    original = ast.parse(source)
    found = []
    for place, node in enumerate(_runtime_nodes(original)):
        for number, _ in enumerate(_changes(node)):
            tree = copy.deepcopy(original)
            changed = list(_runtime_nodes(tree))[place]
            before = ast.unparse(changed)
            list(_changes(changed))[number]()
            after = ast.unparse(changed)
            if before == after:
                continue
            ast.fix_missing_locations(tree)
            found.append(Mutant(node.lineno, f"{_line(before)} -> {_line(after)}", tree))
    return found


def _line(code: str) -> str:
    joined = " ".join(code.split())
    return joined if len(joined) <= 120 else joined[:117] + "..."


def _runtime_nodes(tree: ast.AST) -> Iterator[Any]:
    """What runs when the functions do: no imports, annotations, docstrings or `raise`."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _does_not_run(child):
                continue
            if hasattr(child, "lineno"):
                yield child
            yield from _runtime_nodes(child)


def _does_not_run(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    kinds = (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.ClassDef, ast.JoinedStr)
    if isinstance(node, ast.ClassDef):
        return any(base_name(base) in ("Protocol", "NamedTuple") for base in node.bases)
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    return isinstance(node, tuple(kind for kind in kinds if kind is not ast.ClassDef))


def base_name(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return ast.unparse(node).rsplit(".", 1)[-1]


def _changes(node: Any) -> Iterator[Callable[[], None]]:
    """The changes of one node, each made by a call."""
    if isinstance(node, ast.Compare):
        for table in (COMPARISONS, REVERSED):
            if type(node.ops[0]) in table:
                yield lambda table=table: node.ops.__setitem__(0, table[type(node.ops[0])]())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield lambda: setattr(node, "op", ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield lambda: setattr(node, "op", other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert | ast.Not | ast.USub):
        # -1 is the last dimension nearly everywhere, which +1 is too; its constant changes anyway
        if ast.unparse(node) == "-1":
            return
        yield lambda: setattr(node, "op", ast.UAdd() if _is_minus(node) else ast.Not())
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.IfExp | ast.If | ast.While):
        yield lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        elements = node.value.elts
        if len(elements) > 1:
            yield lambda: elements.__setitem__(slice(0, 2), [elements[1], elements[0]])
    if hasattr(node, "body") and isinstance(node.body, list):
        for number, statement in enumerate(node.body):
            if isinstance(statement, ast.AugAssign | ast.Expr) and not _does_not_run(statement):
                yield lambda number=number: node.body.__setitem__(number, ast.Pass())


def _is_minus(node: ast.UnaryOp) -> bool:
    return isinstance(node.op, ast.USub)


def _of_constant(node: ast.Constant) -> Iterator[Callable[[], None]]:
    value = node.value
    if isinstance(value, bool):
        yield lambda: setattr(node, "value", not value)
    elif isinstance(value, int):
        yield lambda: setattr(node, "value", value + 1)
        yield lambda: setattr(node, "value", value - 1)
    elif isinstance(value, float):
        yield lambda: setattr(node, "value", value + 1.0)


def _of_call(node: ast.Call) -> Iterator[Callable[[], None]]:
    function = node.func
    if isinstance(function, ast.Attribute):
        name = function.attr
        if name in NAMES:
            yield lambda: setattr(function, "attr", NAMES[name])
        if name in ("clamp", "clamp_", "clamp_min", "clamp_max"):
            # the clamp itself goes
            yield lambda: _become(function, node)
    elif isinstance(function, ast.Name) and function.id in NAMES:
        name = function.id
        yield lambda: setattr(function, "id", NAMES[name])
    if base_name(function) in ("where", "lerp", "searchsorted") and len(node.args) > 1:
        yield lambda: node.args.__setitem__(slice(-2, None), node.args[-2:][::-1])


def _become(function: ast.Attribute, call: ast.Call) -> None:
    """`x.clamp(...)` becomes `(+x)`, or stays where a plus is not allowed on it."""
    call.func = ast.Attribute(function.value, "clone", ast.Load())
    call.args, call.keywords = [], []


def tests_of(target: str) -> list[str]:
    """The tests of one target: files, and the batched form for a rule."""
    names = TESTS.get(target, [f"test_{Path(target).stem}"])
    batched = [f"tests/test_truncation.py::{BATCHED}"] if target in RULES else []
    return [*(f"tests/{name}.py" for name in names), *batched]


def killed(target: str, tree: ast.Module | None, limit: float) -> tuple[str, float]:
    """What the tests say of a changed module: "killed", "timeout" or "survived", and the seconds."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_tests(target, tree)
    while time.monotonic() - start < limit:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            passed = os.waitstatus_to_exitcode(code) == 0
            return "survived" if passed else "killed", time.monotonic() - start
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout", time.monotonic() - start


def _run_tests(target: str, tree: ast.Module | None) -> None:
    """Load the changed module for the file, run its tests, and end the process."""
    import pytest

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> CodeType | None:
        path = Path(self.path).resolve()
        if tree is not None and path == ROOT / target:
            return compile(tree, str(path), "exec")
        return original(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]
    chosen = f"({SELECTED[target]}) and {LEFT_OUT}" if target in SELECTED else LEFT_OUT
    options += ["-o", "addopts=--import-mode=importlib", "-m", "not gpu", "-k", chosen]
    code = 1
    try:
        code = int(pytest.main([*options, *tests_of(target)]))
    finally:
        os._exit(code)


def test_file(target: str, most: int, slower: float, end: float) -> dict[str, Any] | None:
    """Try a sample of a file's mutants; None when its own tests fail or the time is over."""
    found = mutants_of((ROOT / target).read_text())
    sample = random.Random(f"{SEED}/{target}").sample(found, min(most, len(found)))
    verdict, seconds = killed(target, None, math.inf)
    limit = max(slower * seconds, LEAST_LIMIT)
    if verdict != "survived":
        print(
            f"{target}: the tests of the file as it is: {verdict} after {seconds:.1f} s", flush=True
        )
        return None
    result: dict[str, Any] = {
        "tests": tests_of(target),
        "seconds": round(seconds, 1),
        "mutants": len(found),
        "tried": 0,
        "killed": 0,
        "timed_out": 0,
        "survivors": [],
    }
    for mutant in sample:
        if time.monotonic() > end:
            break
        verdict, _ = killed(target, mutant.tree, limit)
        result["tried"] += 1
        if verdict == "survived":
            result["survivors"].append({"line": mutant.line, "change": mutant.change})
        else:
            result["killed"] += 1
            result["timed_out"] += verdict == "timeout"
    print(
        f"{target}: {result['killed']} of {result['tried']} killed, {result['timed_out']} of them by the clock",
        flush=True,
    )
    for survivor in result["survivors"]:
        print(f"    line {survivor['line']}: {survivor['change']}", flush=True)
    return result


def explained(result: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Keep the explanations that were written beside the same survivors, whose lines may have moved."""
    known = [survivor for survivor in earlier.get("survivors", []) if "why" in survivor]
    for survivor in result["survivors"]:
        alike = [each for each in known if each["change"] == survivor["change"]]
        here = [each for each in alike if each["line"] == survivor["line"]]
        if here or len(alike) == 1:
            survivor["why"] = (here or alike)[0]["why"]


def summary(files: dict[str, Any]) -> str:
    """The share of killed mutants with its 95 % interval (Clopper and Pearson), with and without equivalent ones."""
    tried, dead = (sum(file[key] for file in files.values()) for key in ("tried", "killed"))
    survivors = [survivor for file in files.values() for survivor in file["survivors"]]
    equivalent = sum(survivor.get("why", "").startswith("equivalent") for survivor in survivors)
    if not tried:
        return "no mutant was tried"
    interval = stats.binomtest(dead, tried).proportion_ci(0.95)
    return (
        f"{dead} of {tried} mutants killed in {len(files)} files: {dead / tried:.1%} "
        f"[{interval.low:.1%}, {interval.high:.1%}]; {dead / (tried - equivalent):.1%} of those that "
        f"change anything ({equivalent} are equivalent)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Test the targets, print the table, write the results."""
    parser = argparse.ArgumentParser(description="Mutation testing of truncation and verification.")
    parser.add_argument("targets", nargs="*", default=TARGETS)
    parser.add_argument("--most", type=int, default=12, help="mutants a file")
    parser.add_argument(
        "--slower",
        type=float,
        default=6.0,
        help="a run that takes so many times as long as that of the file as it is counts as killed",
    )
    parser.add_argument("--budget", type=float, default=3000.0, help="seconds for everything")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.budget
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "tests"))
    # imported once, before the forks; no module of ours
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    earlier = (
        json.loads(options.results.read_text())
        if options.results and options.results.exists()
        else {}
    )
    files: dict[str, Any] = earlier.get("files", {})
    for target in options.targets:
        if time.monotonic() > end:
            break
        result = test_file(target, options.most, options.slower, end)
        if result is None or result["tried"] == 0:
            continue
        explained(result, files.get(target, {}))
        files[target] = result
        if options.results:
            total = {
                key: sum(file[key] for file in files.values())
                for key in ("tried", "killed", "timed_out")
            }
            text = {"seed": SEED, "operators": "see .ci/mutate.py", **total, "files": files}
            options.results.write_text(json.dumps(text, indent=1) + "\n")
    print(summary(files))


if __name__ == "__main__":
    main()
