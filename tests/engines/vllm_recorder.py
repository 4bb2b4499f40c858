"""What a running engine hands to our processor, and what it gets back, checked row by row.

`Recorder` is our processor; it also keeps the requests of every row by vLLM's own bookkeeping and
runs `warpdraft.truncate` on the logits of one row at a time, with the rules written out in `CASES`.
Each row becomes a line of the file that `RECORD` names.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

import torch
import vllm.v1.sample.logits_processor.builtin
from vllm.v1.sample.logits_processor import MoveDirectionality

from warpdraft import (
    Epsilon,
    Eta,
    MinP,
    PLess,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    truncate,
)
from warpdraft.integrations.vllm import Truncation
from warpdraft.rules import Rule


class Case(NamedTuple):
    """A request's parameters and the rules that they mean."""

    parameters: dict[str, object]
    rules: tuple[Rule, ...]


CASES = {
    "none": Case({}, ()),
    "top_h": Case({"top_h": 0.4}, (TopH(0.4),)),
    "top_h wide": Case({"top_h": 0.8}, (TopH(0.8),)),
    "top_h of transformers": Case(
        {"top_h": 0.5, "top_h_variant": "transformers"}, (TopH(0.5, variant="transformers"),)
    ),
    "min_p": Case({"min_p": 0.1}, (MinP(0.1),)),
    "top_n_sigma": Case({"top_n_sigma": 1.5}, (TopNSigma(1.5),)),
    "epsilon": Case({"epsilon_cutoff": 0.01}, (Epsilon(0.01),)),
    "eta": Case({"eta_cutoff": 0.01}, (Eta(0.01),)),
    "top_a": Case({"top_a": 0.2}, (TopA(0.2),)),
    "p_less": Case({"p_less": True}, (PLess(),)),
    "typical": Case({"typical_p": 0.5}, (Typical(0.5),)),
    "top_k, top_h": Case({"rules": [{"top_k": 9}, {"top_h": 0.6}]}, (TopK(9), TopH(0.6))),
    "top_h, top_k": Case({"rules": '[{"top_h": 0.6}, {"top_k": 9}]'}, (TopH(0.6), TopK(9))),
    "top_p, min_p": Case({"rules": [{"top_p": 0.8}, {"min_p": 0.05}]}, (TopP(0.8), MinP(0.05))),
}


class Recorder(Truncation):
    """Our processor under observation; `extra_args["case"]` and `["request"]` say whose row it is."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.occupants = {}
        self.moves = {"one way": 0, "swap": 0}

    def add_request(self, req_idx, sampling_params):
        self.occupants[req_idx] = sampling_params
        return super().add_request(req_idx, sampling_params)

    def update_state(self, batch_update):
        # the helper that vLLM's own processors keep their rows with
        vllm.v1.sample.logits_processor.builtin.process_dict_updates(
            self.occupants, batch_update, lambda sampling_params, *_: sampling_params
        )
        for *_, direction in batch_update.moved if batch_update else ():
            swapped = direction == MoveDirectionality.SWAP
            self.moves["swap" if swapped else "one way"] += 1
        super().update_state(batch_update)

    def apply(self, logits, ctx=None):
        slots = range(len(logits)) if ctx is None else ctx.expanded_idx_mapping.tolist()
        before = logits.clone()
        after = super().apply(logits) if ctx is None else super().apply(logits, ctx)
        with open(os.environ["RECORD"], "a") as lines:
            for row, slot in enumerate(slots):
                params = self.occupants.get(slot)
                if params is not None and "case" in (params.extra_args or {}):
                    line = self.record(before[row : row + 1], after[row : row + 1], params, ctx)
                    lines.write(json.dumps(line) + "\n")
        return after

    def record(self, before, after, params, ctx):
        """One row: what the engine keeps of it, and whether that is what truncate keeps."""
        rules, greedy = CASES[params.extra_args["case"]].rules, params.temperature == 0
        # the V1 runner has divided by the temperature
        temperature = 1.0 if ctx is None else params.temperature
        expected = before if greedy else truncate(before, rules, temperature=temperature)
        kept = after[0].isfinite()
        return {
            "interface": "V1" if ctx is None else "V2",
            "request": params.extra_args["request"],
            "equal": torch.equal(after, expected),
            "kept": kept.nonzero().flatten().tolist() if rules and not greedy else None,
            "rows": len(self.occupants),
            "moves": dict(self.moves),
        }
