from __future__ import annotations

import socket

import pytest
import torch

# tiny tensors: a second thread only waits (measured: a third slower on two cores), and workers share the cores
torch.set_num_threads(1)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the command line went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def call(capsys):
    """Runs one command; returns its exit code, stdout and stderr."""
    # only the tests of commands need the command line
    from warpdraft.bench.cli import run

    def run_command(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command
