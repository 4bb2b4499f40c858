"""The API reference: docs/api/*.md, written from the docstrings in the sources.

    python .ci/reference.py             write the pages
    python .ci/reference.py --check     exit with 1 and their names if some of them are stale

The sources are parsed and never imported, so that no engine, GPU or even torch need be there.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
API = ROOT / "docs" / "api"
FOLDERS = {"kernels": "kernels", "integrations": "integrations", "bench": "bench"}

HEADER = "<!-- Written by .ci/reference.py from the docstrings: change those, and run it again. -->"
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
WIDTH = 88

Definition = ast.ClassDef | ast.FunctionDef | ast.AnnAssign | ast.Assign


@dataclass(frozen=True)
class Part:
    """Names of one module on a page.

    Attributes:
        module: dotted, as it is imported.
        names: None for all of its `__all__`.
        members: whether the public methods and properties of classes are written too.
        opening: whether the module's docstring stands before the names.
        door: the module to import the names from, if it is another one.
    """

    module: str
    names: Sequence[str] | None = None
    members: bool = True
    opening: bool = False
    door: str | None = None


@dataclass(frozen=True)
class Page:
    """One file of docs/api/."""

    name: str
    title: str
    opening: str
    parts: Sequence[Part]


def file_of(module: str) -> Path:
    """The file of a module: `warpdraft.kernels.noise` -> kernels/noise.py."""
    first, *rest = module.split(".")
    assert first == "warpdraft", module
    folder = FOLDERS.get(rest[0], "decoders") if rest else "decoders"
    inside = rest[1:] if rest and rest[0] in FOLDERS else rest
    path = ROOT / folder / "/".join(inside)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(file_of(module).read_text(encoding="utf-8"))


def front_door() -> list[Part]:
    """What `warpdraft.__all__` names, each from the module that defines it."""
    homes = ast.literal_eval(value_of("warpdraft", "_HOMES"))
    return [
        Part(f"warpdraft.{homes.get(name, 'rules')}", [name], members=False, door="warpdraft")
        for name in exported("warpdraft")
        if name != "__version__"
    ]


def exported(module: str) -> list[str]:
    """`__all__` of a module."""
    names: list[str] = ast.literal_eval(value_of(module, "__all__"))
    return names


def value_of(module: str, name: str) -> ast.expr:
    """What a module assigns to a name."""
    found = definition(module, name)
    assert isinstance(found, ast.Assign | ast.AnnAssign), name
    assert found.value is not None
    return found.value


def definition(module: str, name: str) -> Definition | None:
    """The class, function or assignment of that name at the top of a module."""
    for node in tree_of(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node
    return None


def home_of(module: str, name: str) -> str:
    """The module that defines a name which another one may only import."""
    if definition(module, name) is not None:
        return module
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            source = node.module or ""
            if node.level:
                source = f"{module if is_package(module) else module.rpartition('.')[0]}.{source}"
            return home_of(source, name)
    raise LookupError(f"{module} does not define {name}")


def is_package(module: str) -> bool:
    """Whether its file is an `__init__.py`."""
    return file_of(module).name == "__init__.py"


# ---- from a definition to markdown


def entry(door: str, name: str, *, members: bool) -> Iterator[str]:
    """Signature, docstring and members of a name that a module defines or imports."""
    module = home_of(door, name)
    node = definition(module, name)
    assert node is not None, f"{module}.{name}"
    if isinstance(node, ast.FunctionDef):
        yield fenced(function_stub(node))
        yield from markdown(docstring(node))
    elif isinstance(node, ast.ClassDef):
        yield fenced(class_stub(module, node))
        yield from markdown(docstring(node))
        if members:
            yield from (line for member in public_members(node) for line in member_entry(member))
    else:
        yield fenced(ast.unparse(node))
        yield from markdown(text_behind(module, node))


def docstring(node: ast.ClassDef | ast.FunctionDef | ast.Module) -> str:
    """The docstring of a node, or nothing."""
    return ast.get_docstring(node) or ""


def text_behind(module: str, node: Definition) -> str:
    """The string under an assignment, which documents it."""
    body = tree_of(module).body
    after = body[body.index(node) + 1 :][:1]
    if after and isinstance(after[0], ast.Expr) and isinstance(after[0].value, ast.Constant):
        return textwrap.dedent(str(after[0].value.value))
    return ""


def member_entry(node: ast.FunctionDef) -> Iterator[str]:
    """One method or property."""
    yield f"#### `{node.name}`"
    yield fenced(function_stub(node))
    yield from markdown(docstring(node))


def public_members(node: ast.ClassDef) -> list[ast.FunctionDef]:
    """Methods and properties with a docstring of their own."""
    return [
        member
        for member in node.body
        if isinstance(member, ast.FunctionDef)
        and not member.name.startswith("_")
        and not docstring(member).startswith("See `")
    ]


def fenced(code: str) -> str:
    """A block of code."""
    return f"```python\n{code}\n```"


def function_stub(node: ast.FunctionDef) -> str:
    """The signature, a parameter a line where it is long."""
    decorators = [f"@{ast.unparse(each)}" for each in node.decorator_list]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return "\n".join([*decorators, f"def {signature(node.name, node.args)}{returns}: ..."])


def signature(name: str, arguments: ast.arguments) -> str:
    """`name(parameters)`."""
    parameters = parameters_of(arguments)
    line = f"{name}({', '.join(parameters)})"
    if len(line) + 8 <= WIDTH:
        return line
    return "\n".join([f"{name}(", *[f"    {parameter}," for parameter in parameters], ")"])


def parameters_of(arguments: ast.arguments) -> list[str]:
    """Every parameter with annotation and default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = len(positional) - len(arguments.defaults)
    defaults = [None] * missing + list(arguments.defaults)
    parameters = [with_default(*pair) for pair in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        parameters.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        parameters.append("*")
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters += [with_default(*pair) for pair in pairs]
    if arguments.kwarg:
        parameters.append(f"**{ast.unparse(arguments.kwarg)}")
    return parameters


def with_default(argument: ast.arg, default: ast.expr | None) -> str:
    """`name: type = value`."""
    return ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}")


def class_stub(module: str, node: ast.ClassDef) -> str:
    """What the class is called with, or derives from."""
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    head = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    lines = [ast.unparse(field) for field in fields_of(module, node)]
    made = next((each for each in node.body if is_named(each, "__init__")), None)
    if made is not None:
        assert isinstance(made, ast.FunctionDef)
        lines += function_stub(made).split("\n")
    return "\n".join([head, *[f"    {line}" for line in lines or ["..."]]])


def is_named(node: ast.stmt, name: str) -> bool:
    """Whether it is a function of that name."""
    return isinstance(node, ast.FunctionDef) and node.name == name


def fields_of(module: str, node: ast.ClassDef) -> list[ast.AnnAssign | ast.Assign]:
    """The public fields of a dataclass, a named tuple, an enumeration or an interface."""
    return [
        field
        for field in node.body
        if isinstance(field, ast.AnnAssign | ast.Assign)
        and not ast.unparse(field).startswith("_")
        and "ClassVar[Range]" not in ast.unparse(field)
        and "ClassVar[dict[str, Range]]" not in ast.unparse(field)
        and "ClassVar[str | None]" not in ast.unparse(field)
        and "ClassVar[bool]" not in ast.unparse(field)
    ]


# ---- from a docstring to markdown


def markdown(text: str) -> Iterator[str]:
    """Paragraphs, lists and blocks of a Google docstring."""
    lines = text.split("\n")
    while lines:
        name = lines[0].rstrip(":")
        if lines[0].endswith(":") and name in SECTIONS:
            end = next(
                (i for i, line in enumerate(lines[1:], 1) if line and not line.startswith(" ")),
                len(lines),
            )
            yield f"**{name}**"
            yield section(textwrap.dedent("\n".join(lines[1:end])).strip("\n"), name)
            lines = lines[end:]
        elif lines[0].startswith("    "):
            end = next(
                (i for i, line in enumerate(lines) if line and not line.startswith("    ")),
                len(lines),
            )
            block = textwrap.dedent("\n".join(lines[:end])).strip("\n")
            yield f"```text\n{block}\n```"
            lines = lines[end:]
        elif lines[0]:
            end = next((i for i, line in enumerate(lines) if not line), len(lines))
            following = next(
                (i for i, line in enumerate(lines[:end]) if line.startswith("    ")), end
            )
            yield "\n".join(prose(line) for line in lines[:following])
            lines = lines[following:]
        else:
            lines = lines[1:]


def section(body: str, name: str) -> str:
    """The items of a section as a list; what is returned may be a plain paragraph."""
    items = re.split(r"\n(?=\S)", body)
    if name in ("Returns", "Yields"):
        return prose(body)
    return "\n".join(item(each) for each in items)


def item(text: str) -> str:
    """`name: text` as a line of a list."""
    name, _, rest = text.partition(":")
    rest = re.sub(r"\s*\n\s*", " ", rest.strip())
    return f"- `{name.strip()}`: {prose(rest)}"


def prose(text: str) -> str:
    """Text in which a star is a star: alpha*."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("*", r"\*") for part in parts)


# ---- tables


def table(module: str, name: str, columns: Sequence[str]) -> Iterator[str]:
    """A dict of a module whose values are calls such as `_refused("why", ...)`."""
    constants = {
        target.id: node.value
        for node in tree_of(module).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    written = value_of(module, name)
    assert isinstance(written, ast.Dict)
    for key, value in zip(written.keys, written.values, strict=True):
        assert key is not None
        call = constants[value.id] if isinstance(value, ast.Name) else value
        assert isinstance(call, ast.Call)
        kind = ast.unparse(call.func).lstrip("_").replace("_", " ")
        note = "as in plain generation"
        if call.args:
            said = call.args[0]
            said = constants[said.id] if isinstance(said, ast.Name) else said
            note = str(ast.literal_eval(said))
        lines.append(f"| `{ast.literal_eval(key)}` | {kind} | {prose(note)} |")
    yield f"### `{module}.{name}`"
    yield "\n".join(lines)


# ---- the pages


def pages() -> list[Page]:
    """All pages, in the order of the index."""
    verifiers = sorted(path.stem for path in (ROOT / "decoders" / "verifiers").glob("*.py"))
    return [
        Page(
            "warpdraft",
            "warpdraft",
            "Every name of `warpdraft.__all__`, and what its functions return.",
            [
                *front_door(),
                Part("warpdraft.rules", [], opening=True),
                Part("warpdraft.temperature_rules", [], opening=True),
                Part("warpdraft.sampling", ["Sampled"]),
                Part(
                    "warpdraft.abstract_verifiers",
                    ["VerifiedBlock"],
                    door="warpdraft.verification",
                ),
            ],
        ),
        Page(
            "transformers",
            "warpdraft.integrations.transformers",
            "What `model.generate` takes from us, and what becomes of its arguments.",
            [
                Part("warpdraft.integrations.transformers", opening=True),
                Part("warpdraft.statistics", ["GenerationStats"]),
            ],
        ),
        Page(
            "engines",
            "The plugins of the other engines",
            "One module an engine; importing `warpdraft.integrations` imports none of them.",
            [
                Part("warpdraft.integrations", opening=True),
                *(Part(f"warpdraft.integrations.{engine}", opening=True) for engine in engines()),
                Part("warpdraft.request_parameters", ["rules_of_request"], opening=True),
            ],
        ),
        Page(
            "verifiers",
            "The verifiers",
            "What `verifier=` names. [verifiers.md](../verifiers.md) has their proofs.",
            [
                Part("warpdraft.verification", ["VERIFIERS", "DEFAULT_VERIFIER", "get_verifier"]),
                *(
                    Part(f"warpdraft.verifiers.{name}", classes(name), members=False, opening=True)
                    for name in verifiers
                ),
            ],
        ),
        Page(
            "extending",
            "What rules, verifiers and draft sources are written with",
            "The interfaces behind [writing_a_kernel.md](../writing_a_kernel.md) and "
            "[writing_a_verifier.md](../writing_a_verifier.md).",
            [
                Part(
                    "warpdraft.abstract_rules",
                    ["Rule", "TruncationRule", "ThresholdRule"],
                    opening=True,
                    door="warpdraft.rules",
                ),
                Part(
                    "warpdraft.parameters",
                    ["Range", "NamedParameter"],
                    opening=True,
                    door="warpdraft.rules",
                ),
                Part("warpdraft.temperature_rules", ["TemperatureRule"], opening=True),
                Part(
                    "warpdraft.abstract_verifiers",
                    ["Verifier", "NodeVerifier", "DraftBlock", "Drafts"],
                    opening=True,
                    door="warpdraft.verification",
                ),
                Part("warpdraft.draft_sources", ["ModelSource", "TextSource"], opening=True),
                Part("warpdraft.laws", ["Law", "NodeLaws", "law_of"]),
                Part("warpdraft.kernels.support", ["Support"], opening=True),
                Part("warpdraft.kernels.row_stats", ["Row", "RowStats"], opening=True),
                Part("warpdraft.kernels.noise", ["Role", "Noise"], opening=True),
                Part("warpdraft.kernels.draw", ["draw"], opening=True),
            ],
        ),
    ]


def engines() -> list[str]:
    """The engines that have a plugin, beside transformers."""
    known = value_of("warpdraft.integrations.registry", "PLUGINS")
    assert isinstance(known, ast.Dict)
    names = [str(ast.literal_eval(key)) for key in known.keys if key is not None]
    return [name for name in names if name != "transformers"]


def classes(verifier: str) -> list[str]:
    """The verifier that a file of decoders/verifiers/ defines."""
    known = ast.literal_eval(value_of("warpdraft.verification", "VERIFIERS"))
    return [name for module, name in known.values() if module.endswith(f".{verifier}")]


def written(page: Page) -> str:
    """The text of a page."""
    blocks = [HEADER, f"# {page.title}", page.opening]
    here = {name for part in front_door() for name in part.names or ()}
    for part in page.parts:
        if part.opening:
            blocks += [f"## `{part.module}`", *markdown(docstring(tree_of(part.module)))]
        for name in exported(part.module) if part.names is None else part.names:
            blocks.append(f"### `{part.door or part.module}.{name}`")
            if page.name != "warpdraft" and name in here:
                link = f"warpdraft.md#{anchor(f'warpdraft.{name}')}"
                blocks.append(f"See [`warpdraft.{name}`]({link}).")
            else:
                blocks += entry(part.module, name, members=part.members)
        if page.name == "transformers" and part.names is None:
            module = "warpdraft.integrations.transformers_arguments"
            blocks += ["## What becomes of the arguments", *markdown(docstring(tree_of(module)))]
            blocks += table(module, "ARGUMENTS", ("argument", "", "note"))
            blocks += ["## What becomes of the logits processors"]
            blocks += markdown(docstring(tree_of("warpdraft.processor_table")))
            blocks += table("warpdraft.processor_table", "TABLE", ("class", "kind", "reason"))
    return "\n\n".join(blocks) + "\n"


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def main() -> int:
    """Write the pages, or tell which are stale."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if stale")
    check = parser.parse_args().check
    texts = {API / f"{page.name}.md": written(page) for page in pages()}
    stale = [
        path.relative_to(ROOT).as_posix()
        for path in sorted({*texts, *API.glob("*.md")})
        if not path.is_file() or path.read_text(encoding="utf-8") != texts.get(path)
    ]
    if check:
        for name in stale:
            print(f"{name} is stale: run python .ci/reference.py")
        return 1 if stale else 0
    API.mkdir(parents=True, exist_ok=True)
    for path in API.glob("*.md"):
        if path not in texts:
            path.unlink()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
