"""A byte-level tokenizer with a chat template, made on the spot: no file, no download."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(
    template: str | None = CHATML,
    *,
    adds: str = "$A",
    merges: Sequence[tuple[str, str]] = (),
    **special: str | None,
) -> PreTrainedTokenizerFast:
    """Bytes as tokens; `adds` says what the tokenizer itself puts around a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    named = {"pad_token": "<|pad|>", "eos_token": "<|im_end|>", **special}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        extra_special_tokens=["<|im_start|>"],
        **{name: token for name, token in named.items() if token},
    )
    tokenizer.chat_template = template
    words = [word for word in adds.split() if word != "$A"]
    ids = [(word, tokenizer.convert_tokens_to_ids(word)) for word in words]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=adds, special_tokens=ids
    )
    return tokenizer
