"""Small tokenizers of the two kinds that models have, made on the spot."""

import string
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "hello world, this is a test.",
    "naïve café — 你好世界 🙂👨‍👩‍👧",
    "  double  spaces\n\nand\ttabs 123",
] * 20
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
SPECIAL = ["<s>", "</s>"]


def byte_level() -> Tokenizer:
    """As GPT-2's, Llama 3's and Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return _with_bos(tokenizer)


def sentencepiece_like() -> Tokenizer:
    """As Llama 2's and Mistral's: spaces as U+2581, unknown characters as bytes, the first space dropped."""
    words = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *f"▁{string.ascii_letters}.,!?'"]
    merges = [("▁", "h"), ("e", "l"), ("l", "o"), ("▁", "t"), ("h", "e"), ("▁", "w"), ("▁", "▁")]
    words += ["".join(pair) for pair in merges]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", *SPECIAL])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_bos(tokenizer)


def _with_bos(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.add_tokens([AddedToken("<plain>", special=False)])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, template: str | None = TEMPLATE) -> str:
    """A model folder as far as a tokenizer goes."""
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template).save_pretrained(
        folder
    )
    return str(folder)
