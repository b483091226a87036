"""The demo model's tokens: a byte-level vocabulary, the special tokens of a chat, and the chat template."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from triton_backend.demo import corpus

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL = (PAD, END, *(f"<|{role}|>" for role in ROLES))
VOCABULARY = 2560
MAX_POSITIONS = 4096
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = message['role'] -%}
{%- set role = 'system' if role == 'developer' else role -%}
{{- '<|' + (role if role in ('system', 'assistant') else 'user') + '|>' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- elif message['content'] -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def train_tokenizer(chats: Iterable[corpus.Chat]) -> Tokenizer:
    """Byte-level, so that any text survives the round trip. Digits stand apart: 7 is one token anywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((m.content for chat in chats for m in chat), trainer)
    return tokenizer


def token(tokenizer: Tokenizer, text: str) -> int:
    """The id of a special token."""
    number: int | None = tokenizer.token_to_id(text)
    assert number is not None, text
    return number


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer with its special tokens and template, as transformers loads it."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
