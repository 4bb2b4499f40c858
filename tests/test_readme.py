"""The README's Python runs as it stands, in one session, on two tiny models."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import torch
from tiny_models import tiny_model

import warpdraft

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_snippets_run_in_order(capsys, monkeypatch):
    # the default compiler needs one for C++
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    assert len(SNIPPETS) == 6
    names = {
        "model": tiny_model(seed=1, layers=8),
        "draft_model": tiny_model(seed=2, layers=1),
        "inputs": {"input_ids": torch.tensor([[1, 5, 9]])},
        "logits": torch.randn(2, 64, generator=torch.Generator().manual_seed(0)),
    }
    for number, snippet in enumerate(SNIPPETS):
        exec(compile(snippet, f"README snippet {number}", "exec"), names)
    efficiency, acceptance = map(float, capsys.readouterr().out.split())
    assert 1 <= efficiency <= 9
    assert 0 <= acceptance <= 1
    assert (names["masked"] > -torch.inf).any(dim=1).all()
    assert names["tokens"].tolist() == sample_tokens(names["logits"], names["rules"])
    assert names["drawn"].token_ids.shape == names["drawn"].kept_mass.shape == (2,)


def sample_tokens(logits, rules):
    return warpdraft.sample(logits, rules, seed=7).token_ids.tolist()


def test_every_command_and_option_that_it_names_exists():
    from typer.main import get_command

    from warpdraft.bench.cli import app

    commands = {"": get_command(app)}
    for name, group in get_command(app).commands.items():
        commands[name] = group
        for sub_name, sub in getattr(group, "commands", {}).items():
            commands[f"{name} {sub_name}"] = sub
    named = set(re.findall(r"warpdraft (generate|env|verify|bench \w+)", README))
    assert named == {"generate", "env", "verify", "bench kernels", "bench spec", "bench verifiers"}
    assert named <= set(commands)
    options = {
        option
        for command in commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    ours = set(re.findall(r"`(--[a-z-]+)", README)) | set(
        re.findall(r"warpdraft [^\n`]*?(--[a-z-]+)", README)
    )
    assert ours <= options
