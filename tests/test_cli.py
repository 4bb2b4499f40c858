"""The command line as a user meets it: what it writes where, and how it fails."""

from __future__ import annotations

import csv
import io
import json
import re
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from warpdraft.bench.bench_speculation import Measurement, recommendation
from warpdraft.bench.cli import one_line, run

PROMPT = "def add(a, b):"


pytestmark = pytest.mark.usefixtures("no_network")


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDE"


def make_tokenizer(letters: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(["<eos>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", unk_token="<eos>"
    )


def save_model(
    folder, letters: str, *, layers: int, vocab: int = 32, chat: str | None = None
) -> str:
    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # the usual initialisation would write one token over and over
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer(letters)
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target, a draft of the same tokenizer with a padded vocabulary, the target as a chat model, a stranger."""
    root = tmp_path_factory.mktemp("models")
    return {
        "target": save_model(root / "target", LETTERS, layers=2),
        "draft": save_model(root / "draft", LETTERS, layers=1, vocab=40),
        "chat": save_model(root / "chat", LETTERS, layers=2, chat="h{{ messages[0]['content'] }}h"),
        "stranger": save_model(root / "stranger", LETTERS[::-1], layers=1),
    }


SHORT = ("--max-new-tokens", "12", "--seed", "3")


def test_the_built_in_pair_writes_text_and_then_what_it_cost(call):
    code, out, err = call("generate", PROMPT, *SHORT)
    assert code == 0
    assert out.startswith(PROMPT)
    assert len(out) > len(PROMPT) + 5
    for word in ("tokens", "target calls", "block efficiency", "acceptance rate", "tokens/s"):
        assert word in err
    assert "seed 3" in err


def test_a_seed_replays_the_text(call):
    seeds = ("3", "3", "4")
    first, again, other = (
        call("generate", PROMPT, "--max-new-tokens", "12", "--seed", seed)[1] for seed in seeds
    )
    assert first == again != other


def test_comparison_under_every_rule(call):
    code, _, err = call(
        *("generate", PROMPT, *SHORT, "--compare", "--temperature", "1.2"),
        *("--top-h", "0.6", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.02"),
        *("--num-drafts", "2", "--draft-length", "3"),
    )
    assert code == 0
    plain = next(line for line in err.splitlines() if line.startswith("│ plain sampling"))
    assert plain.split("│")[-2].strip() == "1.00"
    for word in ("warpdraft", "plain sampling", "assisted generation", "ratio to plain"):
        assert word in err


def test_any_folder_is_a_model_and_greedy_is_plain_greedy(call, folders):
    options = ("--model", folders["target"], "--temperature", "0", *SHORT)
    alone = call("generate", "abc", *options)
    speculative = call("generate", "abc", *options, "--draft-model", folders["draft"])
    assert alone[0] == speculative[0] == 0
    assert alone[1] == speculative[1]
    tokenizer = AutoTokenizer.from_pretrained(folders["target"])
    model = LlamaForCausalLM.from_pretrained(folders["target"])
    inputs = tokenizer("abc", return_tensors="pt")
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0]
    assert alone[1] == tokenizer.decode(expected, skip_special_tokens=True) + "\n"


def test_the_prompt_can_come_from_standard_input(call, folders, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc"))
    code, out, _ = call("generate", "-", "--model", folders["target"], *SHORT)
    assert code == 0
    assert out.startswith("abc")


def test_the_chat_template_is_applied_unless_raw(call, folders):
    options = ("--model", folders["chat"], "--temperature", "0", *SHORT)
    chat, raw = call("generate", "abc", *options), call("generate", "abc", *options, "--raw")
    templated = call("generate", "habch", "--model", folders["target"], *options[2:])
    assert raw[1].startswith("abc")
    # the same weights: the answer is what the target writes after the rendered template
    assert templated[1] == "habch" + chat[1]


def test_env_names_versions_devices_and_engines(call):
    code, out, _ = call("env")
    assert code == 0
    assert torch.__version__ in out
    for name in ("warpdraft", "transformers", "triton", "threads", "vllm", "flashinfer", "target"):
        assert name in out


def spec_options(folders, tmp_path) -> list[str]:
    """`bench spec` on three short prompts and the tiny models."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("abc\n\ndefg\nhh\n")
    models = ["--model", folders["target"], "--draft-model", folders["draft"]]
    short = ["--draft-length", "3", "--max-new-tokens", "8", "--dtype", "float32"]
    return ["bench", "spec", *models, *short, "--prompt-file", str(prompts)]


def test_bench_spec_prints_and_writes_every_setting(call, folders, tmp_path):
    results = tmp_path / "out.json", tmp_path / "out.csv"
    code, out, _ = call(
        *spec_options(folders, tmp_path),
        *("--verifier", "k_seq", "--num-drafts", "1,2"),
        *("--json", str(results[0]), "--csv", str(results[1])),
    )
    assert code == 0
    assert re.search(r"k_seq +│ +2 +│ +3 +│ +\d\.\d+ ± \d\.\d+", out)
    written = json.loads(results[0].read_text())
    settings = [(line["verifier"], line["num_drafts"]) for line in written]
    assert settings == [("plain", 0), ("k_seq", 1), ("k_seq", 2)]
    assert written[0]["block_efficiency"] == written[0]["ratio_to_plain"] == 1
    for line in written[1:]:
        assert len(line["acceptance_by_position"]) == 3
        assert 0 < line["optimal_acceptance"] <= 1
        assert set(line["seconds"]) == {"prefill", "draft", "target", "verify", "commit"}
    assert "fastest: k_seq" in out
    with results[1].open() as stream:
        assert [line["prompts"] for line in csv.DictReader(stream)] == ["3", "3", "3"]


def test_bench_spec_sweeps_options_and_plots(call, folders, tmp_path):
    results, plot = tmp_path / "out.json", tmp_path / "out.png"
    code, _, _ = call(
        *spec_options(folders, tmp_path),
        *("--verifier", "block,optimal_block", "--num-drafts", "1,2", "--batch-size", "2"),
        *("--selector", "clip,lex", "--structure", "paths,rollover"),
        *("--json", str(results), "--plot", str(plot)),
    )
    assert code == 0
    written = json.loads(results.read_text())[1:]
    # one path only for `block`, which has no selector and no need of a tree
    assert [line["num_drafts"] for line in written if line["verifier"] == "block"] == [1]
    others = [line for line in written if line["verifier"] == "optimal_block"]
    assert len(others) == 8
    assert {(line["selector"], line["structure"]) for line in others} == {
        (selector, structure) for selector in ("clip", "lex") for structure in ("paths", "rollover")
    }
    # a text is a sample, in whatever batch it is
    assert {line["prompts"] for line in written} == {3}
    assert all(line["block_efficiency_error"] > 0 for line in written)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_advice_says_where_a_gain_lies_within_its_error():
    plain = measurement("plain", 0, 1.0, 0.0, 100.0)
    quick = measurement("k_seq", 2, 2.0, 0.1, 150.0)
    deep = measurement("optimal_block", 8, 2.2, 0.1, 90.0)
    assert "within its error" in recommendation([plain, quick, deep])[-1]
    deep = measurement("optimal_block", 8, 3.0, 0.1, 90.0)
    fastest, most = recommendation([plain, quick, deep])
    assert fastest.startswith("fastest: k_seq, 2 x 4, 150.0 tokens/s, 1.50 times plain")
    assert most.endswith("3.00: 1.00 ± 0.14 more than the fastest")
    slow = measurement("k_seq", 2, 2.0, 0.1, 50.0)
    assert "plain sampling is faster" in recommendation([plain, slow])[-1]


def measurement(verifier, paths, efficiency, error, speed):
    return Measurement(
        verifier=verifier,
        num_drafts=paths,
        draft_length=4,
        prompts=3,
        emitted_tokens=30,
        target_calls=10,
        block_efficiency=efficiency,
        block_efficiency_error=error,
        acceptance_rate=None,
        tokens_per_second=speed,
        ratio_to_plain=speed / 100,
        selector=None,
        num_top=None,
        structure="paths",
        node_budget=None,
        optimal_acceptance=None,
        acceptance_by_position=[],
        seconds={},
    )


@pytest.mark.parametrize(
    ("options", "named"),
    {
        "block of two paths": (["--verifier", "block", "--num-drafts", "2"], "block"),
        "no such selector": (["--verifier", "optimal", "--selector", "best"], "best"),
        "no such option": (["--verifier", "k_seq", "--selector", "lex"], "selector"),
        "no such structure": (["--verifier", "k_seq", "--structure", "bush"], "bush"),
        "budget without a tree": (["--node-budget", "9"], "node_budget"),
        "layers and a draft": (["--skip", "0"], "--draft"),
    }.values(),
    ids=str,
)
def test_bench_spec_refuses_what_no_verifier_takes(call, folders, tmp_path, options, named):
    assert_one_line(call(*spec_options(folders, tmp_path), *options), named)


@pytest.mark.parametrize("draft", ["first-layers:1", "prompt-lookup:2"])
def test_a_draft_needs_no_second_model(call, folders, draft):
    options = ("--model", folders["target"], "--temperature", "0", *SHORT)
    plain = call("generate", "abcabcab", *options)
    code, out, err = call("generate", "abcabcab", *options, "--draft", draft, "--compare")
    assert code == 0
    assert out == plain[1]
    assert ("first layers, 1" if "first" in draft else "PromptLookup(max_ngram=2") in err
    assert ("assisted generation" if "first" in draft else "assisted look-up") in err


def test_bench_spec_takes_prompt_lookup_with_its_own_verifier(call, folders, tmp_path):
    options = spec_options(folders, tmp_path)
    place = options.index("--draft-model")
    options[place + 1] = "prompt-lookup:2"
    if "--verifier" in options:
        del options[options.index("--verifier") : options.index("--verifier") + 2]
    code, out, _ = call(*options)
    assert code == 0
    assert "target_only" in out


def test_a_draft_can_be_the_target_without_layers(call, folders):
    options = ("--model", folders["target"], "--samples", "100", "--tokens", "1")
    code, out, _ = call("verify", *options, "--skip", "1", "--prompt", "abc")
    assert code == 0
    assert "without layers 1" in out
    assert_one_line(call("verify", *options, "--skip", "7", "--prompt", "abc"), "[7]")
    assert_one_line(call("verify", *options, "--prompt", "abc"), "--skip")


@pytest.mark.parametrize("arguments", [(), ("bench",)], ids=["warpdraft", "warpdraft bench"])
def test_no_command_prints_the_help(call, arguments):
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    assert f"Usage: {' '.join(['warpdraft', *arguments])}" in out


def test_bench_spec_finds_a_bad_setting_before_it_measures(call, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("warpdraft.bench.bench_speculation.speed", None)
    options = spec_options(folders, tmp_path)
    assert_one_line(call(*options, "--verifier", "k_seq,magic"), "magic")


@pytest.mark.parametrize(
    "command",
    [
        ("kernels", "--csv"),
        ("spec", "--json"),
        ("spec", "--csv"),
        ("spec", "--plot"),
        ("verifiers", "--csv"),
    ],
    ids=" ".join,
)
def test_a_results_file_without_a_folder_is_refused_before_measuring(call, monkeypatch, command):
    monkeypatch.setattr("warpdraft.bench.throughput.run.measure", None)
    monkeypatch.setattr("warpdraft.bench.bench_speculation.measure", None)
    name, option = command
    assert_one_line(call("bench", name, option, "no/such/folder/out.csv"), "no/such/folder")


BAD_INPUT = {
    "temperature below zero": (["--temperature", "-1"], "temperature"),
    "temperature no number": (["--temperature", "warm"], "--temperature"),
    "alpha of zero": (["--top-h", "0"], "alpha"),
    "min-p above one": (["--min-p", "1.5"], "min_p"),
    "top-k of zero": (["--top-k", "0"], "top_k"),
    "unknown top-H variant": (["--top-h", "0.4", "--top-h-variant", "best"], "'best'"),
    "no draft paths": (["--num-drafts", "0"], "num_drafts"),
    "draft too long": (["--draft-length", "256"], "draft_length"),
    "unknown verifier": (["--verifier", "magic"], "magic"),
    "no new tokens": (["--max-new-tokens", "0"], "max_new_tokens"),
    "more tokens than the context": (["--max-new-tokens", "100000"], "100003"),
    "seed beyond 64 bits": (["--seed", str(2**64)], "seed"),
    "unknown device": (["--device", "abacus"], "abacus"),
    "absent device": (["--device", "cuda:99"], "cuda:99"),
    "unknown dtype": (["--dtype", "int8"], "int8"),
    "missing folder": (["--model", "./no/such/folder"], "./no/such/folder"),
    "draft without target": (["--draft-model", "./draft"], "--model"),
    "draft of no layers": (["--draft-model", "first-layers:0"], "first-layers:0"),
    "draft of all layers and more": (["--draft-model", "first-layers:99"], "FirstLayers(99)"),
    "unknown option": (["--top-z", "1"], "--top-z"),
}


@pytest.mark.parametrize(("options", "named"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(call, folders, options, named):
    if "--model" not in options and "--draft-model" not in options:
        pair = ["--model", folders["target"], "--draft-model", folders["draft"]]
        options = [*pair, "--max-new-tokens", "8", *options]
    assert_one_line(call("generate", "abc", *options), named)


def test_different_tokenizers_are_refused(call, folders):
    options = ("--model", folders["target"], "--draft-model", folders["stranger"])
    assert_one_line(call("generate", "abc", *options), "different tokenizers")


def test_encoder_decoders_are_refused(call, tmp_path):
    T5Config().save_pretrained(tmp_path)
    assert_one_line(call("generate", "abc", "--model", str(tmp_path)), "encoder-decoder")


def test_damaged_weights_are_refused(call, folders, tmp_path):
    shutil.copytree(folders["target"], tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = call("generate", "abc", "--model", str(tmp_path / "damaged"))
    assert_one_line(result, "cannot be read")


def test_an_empty_prompt_is_refused(call, folders):
    assert_one_line(call("generate", "", "--model", folders["target"]), "prompt is empty")


def test_no_prompt_is_one_line(call):
    assert_one_line(call("generate"), "PROMPT")


@pytest.mark.parametrize("numbers", ["1,x", "", "0", "2,-1"])
def test_lists_of_numbers_are_checked(call, numbers):
    assert_one_line(call("bench", "spec", "--num-drafts", numbers), "--num-drafts")


def assert_one_line(result: tuple[int, str, str], named: str) -> None:
    code, out, err = result
    lines = [line for line in err.splitlines() if line != "Loading torch and the models"]
    assert code == 2
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert named in lines[0]


def test_ctrl_c_exits_as_shells_expect(call, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("warpdraft.bench.model_pair.load_pair", interrupt)
    code, _, err = call("generate", "abc")
    assert code == 130
    assert "Traceback" not in err


def test_an_unforeseen_failure_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("our own invariant")

    monkeypatch.setattr("warpdraft.bench.model_pair.load_pair", fail)
    with pytest.raises(AssertionError, match="our own invariant"):
        run(["generate", "abc"])


def test_long_messages_become_one_line():
    assert one_line("no file\nof that name\n\nIf you meant ...") == "no file of that name"


HELP = """
import sys
from warpdraft.bench.cli import run

code = run(sys.argv[1:])
assert not {"torch", "transformers"} & set(sys.modules)
sys.exit(code)
"""


def ask_for_help(*command: str) -> tuple[str, float]:
    """What the help prints, and the processor time it takes: a busy machine does not change it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = [sys.executable, "-c", HELP, *command, "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return result.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "command",
    [
        *("generate", "inspect", "verify", "env", "bench"),
        *("bench spec", "bench quality", "bench kernels", "bench verifiers"),
    ],
)
def test_help_does_not_import_torch(command):
    text, _ = ask_for_help(*command.split())
    assert f"Usage: warpdraft {command}" in text


def test_help_answers_within_half_a_second():
    assert min(ask_for_help()[1] for _ in range(3)) < 0.5
