"""The model of the speed benchmarks: `python -m benchmarks.speed.model --out FOLDER`.

Llama's shape with 158 million parameters in bfloat16, random from a seed, and a byte-level tokenizer of 8,192
tokens.  Nothing it says means anything; every server that loads it does the same work.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 8192
CONTEXT_TOKENS = 4096
END = "<|end|>"
SYLLABLES = [
    head + vowel for head in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v") for vowel in "aeiou"
]


def make(folder: Path, seed: int = 0) -> None:
    """Write the model and its tokenizer; the same bytes for the same seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    write_tokenizer(folder, seed)


def write_tokenizer(folder: Path, seed: int = 0) -> None:
    """Of VOCABULARY tokens; the first one ends an answer."""
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=_tokenizer(seed), eos_token=END, pad_token=END, model_max_length=CONTEXT_TOKENS
    ).save_pretrained(folder)


def _tokenizer(seed: int) -> Tokenizer:
    """Byte-level, trained on words made up of syllables: enough of them to fill the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(seed), trainer)
    return tokenizer


def _lines(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(20_000)]
    for _ in range(5_000):
        yield " ".join(rng.choices(words, k=20))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="is made if it is not there")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make(options.out, options.seed)


if __name__ == "__main__":
    main()
