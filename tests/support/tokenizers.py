"""Tokenizers after Llama-3's, Gemma's and Llama-2's schemes, trained on the standard library's own prose."""

from __future__ import annotations

import json
from functools import cache
from pydoc_data.topics import topics
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_TEMPLATE = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endfor %}"
)


@cache
def _corpus() -> list[str]:
    blanks = [" " * n + "x" + "\n" * (n % 7 + 1) + "\t" * (n % 4) for n in range(1, 40)]
    return [*topics.values(), *blanks * 3, "你好,世界。漢字かな交じり文 " * 50, "don't we'll I'm it's " * 20]


@cache
def llama3_like(template: bool = True) -> Any:
    """Byte-level BPE behind Llama-3's split; BOS both in the template's text and in the post-processor."""
    backend = Tokenizer(BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    backend.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=3000,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                special_tokens=[("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))],
            ),
        ]
    )
    return _wrap(backend, "<|begin_of_text|>", "<|eot_id|>", LLAMA3_TEMPLATE if template else None)


@cache
def without_bos() -> Any:
    """The Llama-3-like tokenizer with neither template nor BOS, as GPT-2's is."""
    data = json.loads(llama3_like(False).backend_tokenizer.to_str())
    data["post_processor"] = None
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), eos_token="<|eot_id|>")


def _sentencepiece_like(special: list[str]) -> Tokenizer:
    backend = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    # Trained on words, as SentencePiece is; afterwards nothing splits the text before the merges, as in Gemma's file.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("▁+(?=▁)|▁"), "merged_with_next"),
            pre_tokenizers.Split(Regex(r"\n+|\d"), "isolated"),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    backend.train_from_iterator(
        _corpus()[:-2],
        trainers.BpeTrainer(
            vocab_size=3000, special_tokens=[*special, *byte_tokens], limit_alphabet=120, show_progress=False
        ),
    )
    return _without_added_bytes(backend, special)


def _without_added_bytes(backend: Tokenizer, special: list[str]) -> Tokenizer:
    """Byte tokens stand in the vocabulary without being special tokens that text could name."""
    data = json.loads(backend.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in special]
    data["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(data))


@cache
def gemma_like(template: bool = True) -> Any:
    """BPE over the whole text, blanks as '▁', byte fallback, runs of blanks as tokens, BOS on offer twice."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    backend = _sentencepiece_like(special)
    runs = ["\n" * n for n in range(2, 12)] + ["▁" * n for n in range(2, 12)] + ["<table>", "</h1>"]
    backend.add_tokens([AddedToken(run, special=False, normalized=False) for run in runs])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
    )
    return _wrap(backend, "<bos>", "<eos>", GEMMA_TEMPLATE if template else None)


@cache
def llama2_like(template: bool = True) -> Any:
    """As Gemma's, but with a blank put before the text, and no tokens for runs of blanks."""
    special = ["<unk>", "<s>", "</s>"]
    backend = _sentencepiece_like(special)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return _wrap(backend, "<s>", "</s>", LLAMA2_TEMPLATE if template else None)


def _wrap(backend: Tokenizer, bos: str, eos: str, template: str | None) -> Any:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer
