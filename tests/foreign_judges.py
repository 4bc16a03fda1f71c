"""Reward models that are not ours: another vocabulary, another template, other heads."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

TEMPLATE = (
    "<bos>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def other_tokenizer(*, template=TEMPLATE, pad="<eos>"):
    """Bytes with a few merges, a BOS of its own, and padding that is the end token: the case in
    which looking for padding finds the wrong last token."""
    special = ["<bos>", "<eos>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    merges = [("h", "a"), ("t", "h"), ("th", "e"), ("Ġ", "a")]
    tokens = [*special, *alphabet, *("".join(pair) for pair in merges)]
    built = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token=pad,
        chat_template=template,
        model_input_names=["input_ids", "attention_mask"],
    )


def classifier(kind, tokenizer, *, bias=False, positions=256):
    """A random one, the same every time."""
    size = {"vocab_size": len(tokenizer), "num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if kind == "gpt2":
            config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=positions, **size)
            model = GPT2ForSequenceClassification(config)
        elif kind == "llama":
            shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
            heads = {"num_attention_heads": 2, "max_position_embeddings": positions}
            model = LlamaForSequenceClassification(LlamaConfig(**shape, **heads, **size))
        else:
            shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
            heads = {"num_attention_heads": 2, "max_position_embeddings": positions}
            model = BertForSequenceClassification(BertConfig(**shape, **heads, **size))
        if kind != "bert":
            model.score = torch.nn.Linear(32, 1, bias=bias)
    return model.eval()


def saved(folder, kind="gpt2", tokenizer=None, **fields):
    """A classifier with its tokenizer, in a folder."""
    tokenizer = tokenizer or other_tokenizer()
    classifier(kind, tokenizer, **fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def standalone(folder, texts):
    """The scores of whole texts by transformers' own pipeline, one at a time."""
    pipe = pipeline("text-classification", model=str(folder), function_to_apply="none")
    return [pipe(text)[0]["score"] for text in texts]
