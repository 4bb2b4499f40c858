"""Text on stdout as it is written."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase, TextStreamer


class StdoutStreamer(TextStreamer):
    """Print words as they are finished; a run that fails before its first word prints nothing."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, skip_prompt: bool) -> None:
        super().__init__(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        self._has_written = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print `text`, and a line break at the end of all text."""
        self._has_written |= text != ""
        if self._has_written:
            print(text, end="\n" if stream_end else "", flush=True)
