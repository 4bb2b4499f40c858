"""`custom_generate_folder()`: transformers loads the recipe as it loads one from the Hub."""

import subprocess
import sys
from textwrap import dedent

SCRIPT = """
    import torch
    from tiny_models import tiny_model
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from warpdraft.integrations.transformers import custom_generate_folder

    model, draft = tiny_model("llama"), tiny_model("llama", seed=1)
    prompt = {"input_ids": torch.tensor([[5, 9, 2]]), "attention_mask": torch.ones(1, 3).long()}
    ours = {"custom_generate": custom_generate_folder(), "trust_remote_code": True}

    class Recorder:
        tokens, ends = [], 0
        def put(self, value): self.tokens += value.flatten().tolist()
        def end(self): self.ends += 1

    streamer = Recorder()
    expected = model.generate(**prompt, do_sample=False, max_new_tokens=20)
    written = model.generate(
        **prompt, **ours, do_sample=False, max_new_tokens=20, assistant_model=draft,
        num_drafts=2, draft_length=3, streamer=streamer,
    )
    assert torch.equal(written, expected)
    assert streamer.tokens == expected[0].tolist() and streamer.ends == 1

    output = model.generate(
        **prompt, **ours, do_sample=True, top_k=0, max_new_tokens=4, assistant_model=draft,
        rules={"top_h": 0.4}, seed=3, return_dict_in_generate=True,
    )
    assert output.stats.rules[0].startswith("TopH(alpha=0.4"), output.stats.rules

    # a letter a token: the stop string is two tokens in the middle of a drafted path
    letters = [chr(ord("0") + number) for number in range(64)]
    words = Tokenizer(models.WordLevel(dict(zip(letters, range(64))), letters[0]))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=letters[0])
    stop = {"stop_strings": [tokenizer.decode(expected[0, 9:11])], "tokenizer": tokenizer}
    stopped = model.generate(**prompt, **stop, do_sample=False, max_new_tokens=20)
    assert stopped.shape[1] < expected.shape[1]
    for drafter in (draft, model, None):
        written = model.generate(
            **prompt, **ours, **stop, do_sample=False, max_new_tokens=20,
            assistant_model=drafter, draft_length=8,
        )
        assert torch.equal(written, stopped), drafter
"""


def test_the_folder_works_without_our_classes(tmp_path, monkeypatch):
    # a checkout that runs without being installed has no version, which the requirements ask for
    (tmp_path / "warpdraft-0.dist-info").mkdir()
    (tmp_path / "warpdraft-0.dist-info/METADATA").write_text("Name: warpdraft\nVersion: 0\n")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    paths = [path for path in (__file__.rpartition("/")[0], str(tmp_path)) if path]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    run = subprocess.run(
        [sys.executable, "-c", dedent(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
