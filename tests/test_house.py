"""The house stands as DESIGN says: folders, arrows between them, the front door, the commands."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PYPROJECT["tool"]["setuptools"]["package-dir"]
README = (ROOT / "README.md").read_text()

# which of our packages each folder may import, and which third parties at import time
LAYERS = ("kernels", "decoders", "integrations", "bench")
IMPORT_TIME = {
    "kernels": {"torch", "numpy"},
    "decoders": {"torch", "numpy"},
}
PUBLIC = [
    "AdaptiveShape",
    "DynamicTemperature",
    "EntropyDependentTemperature",
    "Epsilon",
    "Eta",
    "FirstLayers",
    "HapoTemperature",
    "MinP",
    "PLess",
    "PromptLookup",
    "TopA",
    "TopH",
    "TopK",
    "TopNSigma",
    "TopP",
    "Typical",
    "WithoutAdapter",
    "__version__",
    "check",
    "optimal_acceptance",
    "sample",
    "truncate",
    "verify_block",
    "warmup",
]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def source_files() -> list[Path]:
    return sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def module_of(name: str) -> str:
    """The layer that a dotted name of ours lives in: `warpdraft.kernels.noise` -> `kernels`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "decoders"


def imports(path: Path, *, import_time_only: bool = False) -> set[str]:
    """Dotted names that a file imports, relative ones resolved."""
    package = FOLDERS_TO_PACKAGES[path.parent.relative_to(ROOT).as_posix()].split(".")
    names: set[str] = set()
    for node in statements(ast.parse(path.read_text()), import_time_only=import_time_only):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def statements(tree: ast.AST, *, import_time_only: bool) -> list[ast.AST]:
    """All nodes, or those that run when the file is imported: no functions, no TYPE_CHECKING."""
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if import_time_only:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                continue
        found += [node, *statements(node, import_time_only=import_time_only)]
    return found


FOLDERS_TO_PACKAGES = {folder: package for package, folder in FOLDERS.items()}


def test_every_folder_of_sources_is_packaged():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in source_files()}
    # the built-in pair's folder holds data only
    assert folders | {"decoders/models"} == set(FOLDERS.values())
    assert set(FOLDERS) == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_only_the_front_doors_have_package_markers():
    markers = [path for path in ROOT.rglob("__init__.py") if "build" not in path.parts]
    ours = [path for path in markers if path.relative_to(ROOT).parts[0] in {*LAYERS, "tests"}]
    assert sorted(ours) == [ROOT / door / "__init__.py" for door in ("decoders", "integrations")]


@pytest.mark.parametrize("layer", LAYERS)
def test_arrows_point_one_way(layer):
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in source_files()
        if layer_of(path) == layer
        for name in imports(path)
        if name.split(".")[0] == "warpdraft" and module_of(name) not in allowed
    }
    assert not wrong


@pytest.mark.parametrize("layer", IMPORT_TIME)
def test_lower_layers_import_only_what_they_may(layer):
    allowed = IMPORT_TIME[layer] | set(sys.stdlib_module_names) | {"warpdraft"}
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in source_files()
        if layer_of(path) == layer
        for name in imports(path, import_time_only=True)
        if name.split(".")[0] not in allowed
    }
    assert not wrong


def test_triton_has_one_door():
    wrong = [
        path.relative_to(ROOT).as_posix()
        for path in source_files()
        if path != ROOT / "kernels" / "_triton.py"
        and any(name.split(".")[0] == "triton" for name in imports(path))
    ]
    assert not wrong


def test_the_front_door_is_pinned():
    import warpdraft

    assert warpdraft.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(warpdraft, name) is not None
    assert set(PUBLIC) <= set(dir(warpdraft))


def test_the_front_door_promises_type_checkers_the_same_names():
    tree = ast.parse((ROOT / "decoders" / "__init__.py").read_text())
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    names = {alias.name for node in block.body for alias in node.names}
    assert names == set(PUBLIC) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error():
    import warpdraft

    with pytest.raises(AttributeError, match="no attribute 'TopQ'"):
        warpdraft.TopQ  # noqa: B018


def test_importing_has_no_side_effects():
    code = (
        "import json, sys, warpdraft.integrations; warpdraft.integrations.available();"
        "print(json.dumps(sorted(sys.modules)))"
    )
    result = run_python(code)
    assert result.stderr == ""
    modules = set(json.loads(result.stdout))
    engines = {"vllm", "sglang", "tensorrt_llm", "llama_cpp", "mlx_lm"}
    assert not modules & {"transformers", "triton", *engines}


def test_the_public_functions_import_no_transformers_and_no_triton():
    code = "import json, sys; from warpdraft import *; print(json.dumps(sorted(sys.modules)))"
    result = run_python(code)
    assert result.stderr == ""
    assert not set(json.loads(result.stdout)) & {"transformers", "triton"}


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
import warpdraft
from warpdraft.bench.cli import run

kept = warpdraft.truncate(torch.tensor([[3.0, 2.0, -5.0]]), [warpdraft.MinP(0.1)])
assert kept.tolist() == [[3.0, 2.0, float("-inf")]]
sys.exit(run(["generate", "def add(a, b):", "--max-new-tokens", "8", "--seed", "1"]))
"""


def test_everything_runs_where_triton_cannot_be_imported():
    assert run_python(WITHOUT_TRITON).stdout.startswith("def add(a, b):")


def test_version_is_that_of_the_project():
    import warpdraft

    assert re.fullmatch(r"\d+\.\d+\.\d+|0\+uninstalled", warpdraft.__version__)
    if warpdraft.__version__ != "0+uninstalled":
        assert warpdraft.__version__ == PYPROJECT["project"]["version"]
    assert f"## {PYPROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_has_two_commands_and_each_pins_the_tested_set():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert all(" -c constraints.txt " in command for command in commands)
    assert '.venv/bin/warpdraft generate "' in commands[0]
    assert commands[1].endswith(".venv/bin/python -m pytest")


def test_every_documented_install_pins_the_tested_set():
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for line in file.read_text().splitlines():
            if "pip install" in line and "warpdraft" in line.split("pip install")[1]:
                assert "-c constraints.txt" in line, line


def test_ci_reads_its_test_command_from_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    found = subprocess.run(
        ["grep", "--max-count=1", "--", "-m pytest", "README.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "grep --max-count=1 -- '-m pytest' README.md" in script
    assert found.stdout.strip().endswith("-m pytest")
    assert found.stdout.startswith("python3 -m venv")


def test_constraints_satisfy_the_requirements():
    from packaging.requirements import Requirement

    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            pinned[requirement.name] = next(iter(requirement.specifier)).version
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = PYPROJECT["project"]["dependencies"] + extras["test"]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


# notes without an owner, and folders of one machine
BANNED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|(?<![\w.:/])/(home|root|Users|work|opt|mnt)/\w")
TEXT = {".py", ".md", ".toml", ".yaml", ".txt", ".in", ""}


def test_no_banned_patterns():
    files = [
        path for folder in (*LAYERS, "docs", "tests", ".ci") for path in (ROOT / folder).rglob("*")
    ]
    files += list(ROOT.glob("*"))
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        if path.is_file()
        and path.suffix in TEXT
        and path.name not in {"test_house.py", ".pre-commit-config.yaml"}
        for line in path.read_text(encoding="utf-8").splitlines()
        if BANNED.search(line)
    ]
    assert not wrong
