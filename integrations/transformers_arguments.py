"""What speculation makes of each argument of `model.generate`: one line each, in code and in docs.

honoured   does what it does in plain generation
unused     plain generation does not read it either: it belongs to beams or another mode
refused    a ValueError before anything runs
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module


class Argument(NamedTuple):
    """One line of `ARGUMENTS`; `neutral` are the values that ask for nothing."""

    treatment: Literal["honoured", "unused", "refused"]
    note: str
    neutral: Collection[Any] = ()


def _honoured(note: str = "as in plain generation") -> Argument:
    return Argument("honoured", note)


def _unused(note: str) -> Argument:
    return Argument("unused", note)


def _refused(note: str, *neutral: Any) -> Argument:
    return Argument("refused", note, (None, *neutral))


_PROCESSOR = _honoured("a logits processor, applied once to the target and once to the draft")
_WARPER = _honoured("a rule in transformers' own meaning, fused with the draw")
_BEAMS = "only beam search reads it"
_ASSISTANT = "configures transformers' own assistant; draft_length= and num_drafts= are ours"
_STATIC = "only static caches read it"

ARGUMENTS: dict[str, Argument] = {
    # parameters of generate() itself
    "inputs": _honoured(),
    "input_ids": _honoured(),
    "generation_config": _honoured(),
    "logits_processor": _PROCESSOR,
    "stopping_criteria": _honoured(
        "asked after every token, also inside an accepted run, with the rows of one length; "
        "scores are None"
    ),
    "prefix_allowed_tokens_fn": _PROCESSOR,
    "streamer": _honoured("give it to SpeculativeDecoding: generate drops it on the way"),
    "tokenizer": _honoured("give it to SpeculativeDecoding: generate drops it on the way"),
    "assistant_model": _refused("pass it to SpeculativeDecoding as draft"),
    "assistant_tokenizer": _refused("target and draft must share one tokenizer"),
    "synced_gpus": _refused("ranks would draft blocks of different lengths", False),
    "negative_prompt_ids": _refused("guidance runs a model inside a processor"),
    "negative_prompt_attention_mask": _refused("guidance runs a model inside a processor"),
    "custom_generate": _refused("it is what calls us"),
    "trust_remote_code": _unused("only code from the Hub needs it"),
    # model arguments
    "attention_mask": _honoured(
        "2-D, not 0 in its last column, nor between tokens of a text beyond a sliding window"
    ),
    "position_ids": _honoured(
        "must count the tokens of attention_mask from 0, as the default does"
    ),
    "past_key_values": _honoured("of an earlier turn; the draft reads the text again"),
    "logits_to_keep": _unused("every call keeps the logits it needs"),
    "inputs_embeds": _refused("the draft needs token ids"),
    # length
    "max_length": _honoured(),
    "max_new_tokens": _honoured(),
    "min_length": _PROCESSOR,
    "min_new_tokens": _PROCESSOR,
    "early_stopping": _unused(_BEAMS),
    "max_time": _honoured("asked after every call of the target"),
    "stop_strings": _honoured("give it to SpeculativeDecoding, with tokenizer="),
    # strategy
    "do_sample": _honoured("False is greedy: token for token plain generation in float32"),
    "num_beams": _refused("beams keep several texts a row", 1),
    "num_beam_groups": _refused("beams keep several texts a row", 1),
    "constraints": _refused("constrained beam search"),
    "force_words_ids": _refused("constrained beam search"),
    "penalty_alpha": _refused("contrastive search reads hidden states", 0, 0.0),
    "dola_layers": _refused("DoLa reads hidden states"),
    "use_mtp": _refused("another speculation", False),
    "low_memory": _unused("only contrastive search reads it"),
    "length_penalty": _unused(_BEAMS),
    "diversity_penalty": _unused(_BEAMS),
    # caches and compilation
    "use_cache": _refused("a rejected token is taken back from the cache", True),
    "cache_implementation": _refused(
        'only "dynamic" and "static" caches return to an earlier token', "dynamic", "static"
    ),
    "cache_config": _refused("it belongs to quantised caches"),
    "max_cache_len": _unused(_STATIC),
    "compile_config": _honoured("with static caches; shapes are fixed whatever its dynamic says"),
    "disable_compile": _honoured("True turns compile= off"),
    "prefill_chunk_size": _refused("the prompt is read in one call"),
    "continuous_batching_config": _unused("only generate_batch reads it"),
    # the law
    "temperature": _WARPER,
    "top_k": _honoured("a rule, fused with the draw; generate's default is 50, 0 turns it off"),
    "top_p": _WARPER,
    "min_p": _WARPER,
    "top_h": _honoured(
        "transformers' rule, over the 100 most likely tokens; TopH() is the paper's"
    ),
    "typical_p": _WARPER,
    "epsilon_cutoff": _WARPER,
    "eta_cutoff": _WARPER,
    "repetition_penalty": _PROCESSOR,
    "encoder_repetition_penalty": _PROCESSOR,
    "no_repeat_ngram_size": _PROCESSOR,
    "encoder_no_repeat_ngram_size": _PROCESSOR,
    "bad_words_ids": _PROCESSOR,
    "renormalize_logits": _honoured("normalises the scores that are returned"),
    "forced_bos_token_id": _PROCESSOR,
    "forced_eos_token_id": _PROCESSOR,
    "remove_invalid_values": _PROCESSOR,
    "exponential_decay_length_penalty": _PROCESSOR,
    "suppress_tokens": _PROCESSOR,
    "begin_suppress_tokens": _PROCESSOR,
    "sequence_bias": _PROCESSOR,
    "guidance_scale": _refused("it runs a model inside a processor", 1, 1.0),
    "watermarking_config": _honoured("the green list; SynthID keeps state and is refused"),
    "token_healing": _refused("it needs the tokenizer: call model.heal_tokens first", False),
    # what is returned
    "num_return_sequences": _honoured("every copy of a row draws independently"),
    "return_dict_in_generate": _honoured("a SpeculativeOutput, with .stats"),
    "output_scores": _honoured("processed scores of the emitted tokens"),
    "output_logits": _honoured("the target's logits at the emitted tokens"),
    "output_attentions": _refused("a block is scored in one call", False),
    "output_hidden_states": _refused("a block is scored in one call", False),
    # special tokens
    "pad_token_id": _honoured(),
    "bos_token_id": _honoured(),
    "eos_token_id": _honoured("also inside an accepted run"),
    "decoder_start_token_id": _unused("only encoder-decoder models read it"),
    # transformers' own assisted generation
    "is_assistant": _refused("the model that writes the text is the target", False),
    "prompt_lookup_num_tokens": _refused(
        "pass PromptLookup(max_matching_ngram_size) to SpeculativeDecoding, with draft_length="
    ),
    "assistant_early_exit": _refused("pass FirstLayers(n) to SpeculativeDecoding as draft"),
    "speculation_type": _refused("another speculation"),
    "assistant_ensemble_weight": _refused("it changes the law"),
    "max_matching_ngram_size": _unused("only prompt look-up reads it"),
    "num_assistant_tokens": _unused(_ASSISTANT),
    "num_assistant_tokens_schedule": _unused(_ASSISTANT),
    "assistant_confidence_threshold": _unused(_ASSISTANT),
    "assistant_lookbehind": _unused(_ASSISTANT),
    "target_lookbehind": _unused(_ASSISTANT),
}
"""Every field of `GenerationConfig`, every parameter of `generate`, and the model arguments."""


# vocabularies are padded to multiples of 64 to 512; codegen's pads 905 tokens
_MOST_PADDING = 1024
# layers that cache keys and values alone; convolutions, recurrences and indexers keep more, and not every such model
# calls itself stateful
_CROPPABLE = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


def check_arguments(arguments: dict[str, Any]) -> None:
    """ValueError for the first argument that is refused and asks for something."""
    for name, value in arguments.items():
        argument = ARGUMENTS.get(name)
        if argument is None or argument.treatment != "refused":
            continue
        if isinstance(value, Tensor) or value not in argument.neutral:
            shown = "a tensor" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"{name}={shown} cannot be used here: {argument.note}.")


def check_model(model: PreTrainedModel, role: str) -> None:
    """ValueError for models whose text cannot be taken back, or is not text alone."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"The {role} model {name} is an encoder-decoder: use a causal model.")
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if getattr(model, "_is_stateful", False) or not _CROPPABLE.issuperset(kinds):
        raise ValueError(
            f"The {role} model {name} keeps a state that cannot return to an earlier token."
        )
    stages = getattr(getattr(model.config, "distributed_config", None), "pp_size", None)
    if stages is not None and stages > 1:
        raise ValueError(
            f"The {role} model {name} is cut into stages over ranks (pp_size={stages}): "
            "use tensor parallelism (tp_plan), or device_map."
        )
    sharded = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)
    if sharded and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ValueError(
            f"The {role} model {name} is sharded over ranks (ZeRO-3, FSDP): "
            "each rank would draft blocks of different lengths."
        )


def check_pair(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    """ValueError for vocabularies too different to be paddings of one tokenizer's."""
    target_width, draft_width = (
        model.config.get_text_config().vocab_size for model in (target, draft)
    )
    if abs(target_width - draft_width) > _MOST_PADDING:
        raise ValueError(
            f"The target model has {target_width} tokens and the draft model {draft_width}: they "
            "do not share a tokenizer."
        )


def check_model_kwargs(model_kwargs: dict[str, Any], rows: int) -> DynamicCache | None:
    """ValueError for model arguments that the loop does not hand on; returns the caller's cache.

    `generate` itself adds an empty cache, default `position_ids` and `logits_to_keep`.
    """
    check_arguments(model_kwargs)
    unknown = sorted(
        name
        for name, value in model_kwargs.items()
        if value is not None and name not in ARGUMENTS and value is not False
    )
    if unknown:
        raise ValueError(
            f"The model arguments {unknown} cannot be used here: the draft would not see them."
        )
    attention_mask, position_ids = (model_kwargs.get(k) for k in ("attention_mask", "position_ids"))
    if position_ids is not None:
        # newer transformers drop a mask without padding
        mask = torch.ones_like(position_ids) if attention_mask is None else attention_mask
        _check_positions(position_ids, mask)
    cache = model_kwargs.get("past_key_values")
    if cache is None or not getattr(cache, "_is_user_defined", False):
        return None
    if type(cache) is not DynamicCache:
        raise ValueError(
            f"past_key_values must be a DynamicCache, which can be cropped, got {type(cache).__name__}."
        )
    layers: list[Any] = cache.layers
    held = next((layer.keys for layer in layers if layer.get_seq_length() > 0), None)
    if held is not None and len(held) != rows:
        raise ValueError(
            f"past_key_values holds {len(held)} rows, but the call has {rows} "
            "(num_return_sequences counted)."
        )
    return cache


def _check_positions(position_ids: Tensor, attention_mask: Tensor) -> None:
    real = attention_mask != 0
    counted = real.cumsum(-1) - 1
    given = position_ids.expand_as(counted) if position_ids.shape[1] == counted.shape[1] else None
    if given is None or not bool((given == counted)[real].all()):
        raise ValueError("position_ids must count the tokens of attention_mask from 0.")


def settings_of(config: GenerationConfig) -> dict[str, Any]:
    """The fields of a prepared generation config that `ARGUMENTS` speaks of."""
    return {name: getattr(config, name) for name in ARGUMENTS if hasattr(config, name)}
