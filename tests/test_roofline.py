"""The cost model against real models' counts, hand-made sums and brute force."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen3Config,
)

from warpdraft.bench.cli import run
from warpdraft.bench.machines import GPUS, Machine
from warpdraft.bench.model_shape import Layer, ModelShape, count_model, shape_named, shape_of
from warpdraft.bench.plan import (
    MOST_TEXTS,
    Plan,
    accepted_with,
    measured_efficiencies,
    read_efficiencies,
)
from warpdraft.bench.plan_command import machine_named
from warpdraft.bench.published_speeds import DRAFTED_RATIOS
from warpdraft.bench.roofline import Assumptions, CostModel, assumptions_for

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 16,
    "attn_implementation": "eager",
}
CONFIGS = {
    "llama, grouped keys": LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen3, tied": Qwen3Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "gemma3, windows": Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=2,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
MODELS = [*CONFIGS, "gpt2"]


def made(name: str):
    if name == "gpt2":
        model = tiny_model("gpt2", vocab=96)
        model.set_attn_implementation("eager")
        return model
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


@pytest.fixture
def h100() -> CostModel:
    return CostModel(GPUS["h100"], Assumptions())


@pytest.fixture
def llama() -> ModelShape:
    return shape_named("llama-8b")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-8b", 8_030_261_248),
        ("llama-70b", 70_553_706_496),
        ("llama-1b", 1_235_814_400),
        ("llama-2-7b", 6_738_415_616),
    ],
)
def test_published_models_have_their_published_parameters(name, parameters):
    assert shape_named(name).parameters == parameters


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_those_of_the_model(name):
    model = made(name)
    shape = count_model(model, name)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    tables = [each for each in model.modules() if isinstance(each, torch.nn.Embedding)]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    unread = sum(table.weight.numel() for table in tables)
    unread -= model.get_input_embeddings().weight.numel() if tied else 0
    assert shape.read_weights == shape.parameters - unread


@pytest.mark.parametrize("context", [0, 5, 20])
@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("name", MODELS)
def test_operations_are_those_that_torch_counts(name, tokens, context, h100):
    model = made(name)
    batch = 3
    cache = DynamicCache(config=model.config)
    ids = torch.ones(batch, context + tokens, dtype=torch.int64)
    with torch.no_grad():
        if context:
            model(input_ids=ids[:, :context], past_key_values=cache)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids[:, context:], past_key_values=cache)
    matrices, attention = h100.call(count_model(model, name), batch, tokens, context)
    # the angles of rotary positions are a product of positions and frequencies, once a kind of layer
    rotary = {"gpt2": 0, "gemma3, windows": 2}.get(name, 1) * 16 * tokens
    assert matrices.operations + attention.operations == counter.get_total_flops() - rotary


@pytest.mark.parametrize("context", [5, 20])
@pytest.mark.parametrize("name", MODELS)
def test_the_cache_holds_so_many_numbers(name, context):
    model = made(name)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.ones(1, context, dtype=torch.int64), past_key_values=cache)
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert count_model(model, name).kv_numbers(context, 0) == held


def test_a_call_takes_the_time_of_its_bytes_or_of_its_operations():
    layer = Layer(1000, 10, 60, kv_width=8, attention_width=16, window=None)
    shape = ModelShape("toy", (layer, layer), hidden=4, vocab=50, parameters=2500, other_vectors=4)
    machine = Machine("toy", bandwidth=1e3, matrix_flops=1e9, vector_flops=1e9, memory=1e6)
    given = Assumptions(bandwidth_share=0.5, matrix_share=0.5, launch_seconds=0.0)
    # weights 2 * 1010 + 4 + 4 * 50, activations 2 * 60 + 2 * 4 + 50, two bytes a number; 7 + 1 tokens of 2 * 8
    slow_memory = 2 * (2224 + 3 * 178) / 500 + 2 * 3 * 2 * 8 * 8 / 500
    call = (shape, 3, 1, 7)
    assert CostModel(machine, given).call_seconds(*call) == pytest.approx(slow_memory)
    # products 2 * (2 * 1000 + 4 * 50) a token, attention 4 * 8 * (16 + 16) a token
    slow_units = replace(machine, bandwidth=1e12, matrix_flops=1e3)
    seconds = 3 * (2 * 2200 + 4 * 8 * 32) / 500
    assert CostModel(slow_units, given).call_seconds(*call) == pytest.approx(seconds)
    # what waits for the memory adds the two
    waiting = replace(machine, matrix_flops=1e3, overlap=0.0)
    both = CostModel(waiting, given).call_seconds(*call)
    assert both == pytest.approx(slow_memory + seconds)


def test_packing_moves_the_weights_again(h100, llama):
    packing = CostModel(replace(h100.machine, matrix_passes=2.0), h100.assumptions)
    thin, thick = packing.call(llama, 2, 1, 0)[0], packing.call(llama, 3, 1, 0)[0]
    assert thin == h100.call(llama, 2, 1, 0)[0]
    assert thick.moved - h100.call(llama, 3, 1, 0)[0].moved == 2 * llama.read_weights


def test_a_draft_of_first_layers_reads_those_and_the_head(llama):
    draft = llama.first_layers(4)
    assert draft.head_weights == llama.head_weights
    layers = llama.matrix_weights - llama.head_weights
    assert draft.matrix_weights - draft.head_weights == layers // 8
    assert llama.without_layers(range(4, 32)).layers == draft.layers


@pytest.mark.parametrize("machine", GPUS)
def test_more_work_takes_longer_and_batches_pay(machine, llama):
    cost = CostModel(GPUS[machine], Assumptions())
    for fewer, more in (
        ((1, 1, 1024), (2, 1, 1024)),
        ((1, 1, 1024), (1, 5, 1024)),
        ((1, 1, 1024), (1, 1, 2048)),
    ):
        assert cost.call_seconds(llama, *fewer) < cost.call_seconds(llama, *more)
    speeds = [cost.plain(llama, 2**power, 1024).tokens_per_second for power in range(10)]
    assert speeds == sorted(speeds)
    faster = replace(GPUS[machine], bandwidth=2 * GPUS[machine].bandwidth)
    assert CostModel(faster, Assumptions()).call_seconds(llama, 1, 1, 0) < cost.call_seconds(
        llama, 1, 1, 0
    )


@pytest.mark.parametrize("is_tree", [True, False], ids=["tree", "paths"])
def test_a_block_is_its_calls(is_tree, h100, llama):
    draft = llama.first_layers(2)
    block = h100.speculative(llama, draft, 3, 100, 2, 3, 2.5, is_tree=is_tree)
    steps = (
        [(3, 1, 100), (3, 2, 101), (3, 2, 103)]
        if is_tree
        else [(3, 1, 100), (6, 1, 101), (6, 1, 102)]
    )
    assert block.draft == pytest.approx(sum(h100.call_seconds(draft, *step) for step in steps))
    scored = (3, 7, 100) if is_tree else (6, 4, 100)
    assert block.target == pytest.approx(h100.call_seconds(llama, *scored))
    assert block.tokens == 7.5
    assert block.seconds == pytest.approx(
        block.draft + block.target + block.truncate + block.verify
    )


@pytest.mark.parametrize("context", [1024, 8192])
@pytest.mark.parametrize(
    ("machine", "acceptance"), [("a100", 0.3), ("a100", 0.5), ("rtx-4090", 0.6), ("h200", 0.05)]
)
def test_the_last_batch_that_pays_is_the_one_of_brute_force(machine, acceptance, context, llama):
    efficiencies = accepted_with([acceptance], [1, 2], [2, 5])
    cost = CostModel(GPUS[machine], Assumptions())
    plan = Plan(cost, llama, llama.first_layers(4), efficiencies)
    pays, fits, plain_fits = 0, 0, 0
    for batch in range(1, MOST_TEXTS + 1):
        lines = [plan.line(context, batch, *setting) for setting in efficiencies]
        plain_fits = batch if lines[0].plain_tokens_per_second is not None else plain_fits
        fits = batch if any(line.tokens_per_second is not None for line in lines) else fits
        pays = batch if any(line.ratio is not None and line.ratio > 1 for line in lines) else pays
    limits = plan.limits(context)
    assert (limits.pays, limits.fits, limits.plain_fits) == (pays, fits, plain_fits)
    assert limits.fits <= limits.plain_fits


def test_some_crossover_lies_inside(llama):
    # otherwise the comparison above would only compare ends
    plan = Plan(
        CostModel(GPUS["a100"], Assumptions()),
        llama,
        llama.first_layers(4),
        accepted_with([0.5], [1, 2], [2, 5]),
    )
    limits = plan.limits(1024)
    assert 1 < limits.pays < limits.fits


def test_memory_ends_where_its_bytes_do(h100, llama):
    draft = llama.first_layers(4)
    plan = Plan(h100, llama, draft, {(2, 4): 2.5})
    last = plan.limits(8192).plain_fits
    # 128 KiB a cached token, and 0.9 of 80 GB
    needed = 2 * 8_030_261_248 + last * (131_072 * 8193 + 4 * 128_256)
    assert needed <= 72e9 < needed + 131_072 * 8193 + 4 * 128_256
    shared = h100.speculative_bytes(llama, draft, 1, 8192, 2, 4)
    apart = h100.speculative_bytes(llama, replace(draft, has_own_weights=True), 1, 8192, 2, 4)
    assert apart - shared == 2 * draft.parameters


@pytest.mark.parametrize("rate", [0.0, 0.4, 0.9])
def test_one_path_has_the_geometric_sum(rate):
    found = accepted_with([rate], [1], [3, 8])
    for length in (3, 8):
        assert found[1, length] == pytest.approx((1 - rate ** (length + 1)) / (1 - rate))


def test_several_candidates_share_the_first_token():
    found = accepted_with([0.7, 0.89], [1, 4], [4])
    assert found[4, 4] == pytest.approx(1 + 0.89 * (1 + 0.7 + 0.49 + 0.343))
    assert accepted_with([0.5], [2], [1])[2, 1] == pytest.approx(1.75)


def test_measured_efficiency_is_that_of_the_best_verifier(tmp_path):
    lines = [
        {"num_drafts": 0, "draft_length": 0, "block_efficiency": 1.0},
        {"num_drafts": 2, "draft_length": 4, "block_efficiency": 2.5},
        {"num_drafts": 2, "draft_length": 4, "block_efficiency": 2.75},
        {"num_drafts": 2, "draft_length": 4, "block_efficiency": 2.25},
    ]
    assert measured_efficiencies(lines) == {(2, 4): 2.75}
    with (tmp_path / "spec.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    (tmp_path / "spec.json").write_text(json.dumps(lines))
    for name in ("spec.csv", "spec.json"):
        assert read_efficiencies(str(tmp_path / name), [1], [8]) == {(2, 4): 2.75}
    assert read_efficiencies("3", [2], [4]) == {(2, 4): 3.0}


def test_the_published_block_efficiencies_follow_from_their_acceptance():
    eagle3 = next(line for line in DRAFTED_RATIOS if line.acceptance == (0.79, 0.79))
    assert eagle3.block_efficiency == pytest.approx(1 + 0.79 + 0.79**2)


PLAN = ("bench", "spec", "--plan", "h100", "--model", "llama-8b", "--draft", "first-layers:4")


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    files = [tmp_path / name for name in ("plan.csv", "plan.json", "plan.png")]
    options = [
        text
        for option, file in zip(("--csv", "--json", "--plot"), files, strict=True)
        for text in (option, str(file))
    ]
    settings = ["--acceptance", "0.7", "--num-drafts", "2", "--draft-length", "4"]
    grid = ["--batches", "1,64", "--contexts", "1024,8192"]
    assert run([*PLAN, *settings, *grid, *options]) == 0
    shown = capsys.readouterr().out
    lines = list(csv.DictReader(files[0].open()))
    assert [(line["context"], line["batch"]) for line in lines] == [
        ("1024", "1"),
        ("1024", "64"),
        ("8192", "1"),
        ("8192", "64"),
    ]
    assert f"{float(lines[1]['tokens_per_second']):,.0f}" in shown
    # 64 texts of 8,192 tokens hold 69 GB beside 16 GB of weights
    assert lines[3]["tokens_per_second"] == "" and "no memory" in shown
    written = json.loads(files[1].read_text())
    assert written["limits"][0]["context"] == 1024
    assert written["assumptions"]["bandwidth_share"] == 0.8
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_an_assumption_changes_the_plan(tmp_path, capsys):
    settings = ["--efficiency", "2", "--num-drafts", "1", "--draft-length", "2"]
    speeds = []
    for assumed in ([], ["--assume", "bandwidth_share=0.4"]):
        file = tmp_path / "plan.csv"
        grid = ["--batches", "1", "--contexts", "1024", "--csv", str(file)]
        assert run([*PLAN, *settings, *grid, *assumed]) == 0
        speeds.append(float(next(csv.DictReader(file.open()))["plain_tokens_per_second"]))
    assert 0.5 < speeds[1] / speeds[0] < 0.6


def test_the_built_in_pair_is_measured_first(tmp_path, capsys):
    file = tmp_path / "plan.csv"
    small = ["--num-drafts", "1", "--draft-length", "2", "--prompts", "2", "--max-new-tokens", "6"]
    grid = ["--batches", "1,8", "--contexts", "256", "--csv", str(file)]
    assert run(["bench", "spec", "--plan", "a100", *small, *grid]) == 0
    shown = capsys.readouterr().out
    efficiency = {float(line["block_efficiency"]) for line in csv.DictReader(file.open())}
    assert len(efficiency) == 1
    # the first table is the measurement
    assert f"{efficiency.pop():.3f} ±" in shown
    assert "A100 SXM 80 GB: the built-in target with the built-in draft" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plan", "h1000"), "--plan takes h100, h100-pcie"),
        (("--acceptance", "1.2"), "--acceptance takes rates in [0, 1], got [1.2]"),
        (("--acceptance", "0.5,0.6"), "one rate, or one for each of --num-drafts"),
        (("--acceptance", "much"), "rates separated by commas, got 'much'"),
        (("--efficiency", "3"), "needs one K and one L"),
        (("--efficiency", "nowhere.csv"), "nowhere.csv"),
        (("--efficiency", "3", "--acceptance", "0.5"), "give one of them"),
        (("--assume", "luck=1"), "--assume takes bandwidth_share"),
        (("--assume", "bandwidth_share=1.5"), "bandwidth_share must be in (0, 1], got 1.5"),
        (("--assume", "launch_seconds=-1"), "launch_seconds must be at least 0, got -1"),
        (("--assume", "bandwidth_share"), "NAME=NUMBER"),
        (("--batches", "1,1024"), "--batches must be at most 512, got 1024"),
        (("--dtype", "float32"), "GPUs in 16 bits"),
        (("--draft", "first-layers:32"), "needs N in [1, 31], got 32"),
        (("--draft", "prompt-lookup:3"), "not prompt look-up"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options_are_refused_at_the_door(options, message, capsys):
    defaults = ["--acceptance", "0.5"]
    if "--acceptance" in options or "--efficiency" in options:
        defaults = []
    assert run([*PLAN, "--num-drafts", "1,2,4", *defaults, *options]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error


def test_plan_options_need_a_plan(capsys):
    assert run(["bench", "spec", "--acceptance", "0.5"]) == 2
    assert "belong to --plan" in capsys.readouterr().err


def test_experts_are_refused():
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=50,
    )
    with pytest.raises(ValueError, match="dense layers only"):
        shape_of(config, "mixture")


def test_measured_rates_lose_no_share(monkeypatch):
    from warpdraft.bench import cpu_rates

    monkeypatch.setattr(cpu_rates, "MATRIX_ROWS", 512)
    monkeypatch.setattr(cpu_rates, "PRODUCT", 64)
    machine = machine_named("cpu")
    assert machine.is_measured and machine.matrix_passes >= 1
    assert min(machine.bandwidth, machine.matrix_flops, machine.vector_flops) > 0
    assert assumptions_for(machine, {}).bandwidth_share == 1.0
    assert assumptions_for(GPUS["h100"], {}).bandwidth_share == 0.8
