"""The two bodies as typed structs: what a field may hold, and which fields we refuse.

Every refusal is a BadRequest that names the field.
"""

import re
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta

from gateway.errors import BadRequest
from triton_backend.contract import MAX_LOGPROBS

MAX_CHOICES = 128
"""Prompts times choices of one call."""

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenCount = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenLimit = Annotated[int, Meta(ge=1, le=2**31 - 1)]
LogprobCount = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
ShortText = Annotated[str, Meta(max_length=512)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]


class _Unsupported(msgspec.Struct, kw_only=True):
    """Fields that change the output and that we do not implement, with the value that asks for nothing."""

    add_generation_prompt: Any = True
    allowed_token_ids: Any = None
    audio: Any = None
    bad_words: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    continue_final_message: Any = False
    documents: Any = None
    ebnf: Any = None
    frequency_penalty: Any = 0
    function_call: Any = "none"
    functions: Any = None
    grammar: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    include_stop_str_in_output: Any = False
    json_schema: Any = None
    length_penalty: Any = 1
    logit_bias: Any = None
    min_p: Any = 0
    modalities: Any = msgspec.field(default_factory=lambda: ["text"])
    presence_penalty: Any = 0
    prompt_logprobs: Any = None
    reasoning_effort: Any = "none"
    regex: Any = None
    repetition_penalty: Any = 1
    response_format: Any = msgspec.field(default_factory=lambda: {"type": "text"})
    skip_special_tokens: Any = True
    stop_regex: Any = None
    structured_outputs: Any = None
    suffix: Any = None
    tool_choice: Any = "none"
    tools: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = False
    verbosity: Any = "medium"
    web_search_options: Any = None


_NEUTRAL = [(name, getattr(_Unsupported(), name)) for name in _Unsupported.__struct_fields__]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Body(_Unsupported, kw_only=True):
    model: Annotated[str, Meta(min_length=1)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    min_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    best_of: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    ignore_eos: bool | None = None
    add_special_tokens: bool | None = None
    service_tier: str | None = None
    user: ShortText | None = None


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    name: ShortText | None = None
    tool_call_id: ShortText | None = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class ChatBody(Body, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: LogprobCount | None = None
    echo: bool | None = None


class CompletionBody(Body, kw_only=True):
    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    logprobs: LogprobCount | None = None
    echo: bool | None = None


_Decoded = TypeVar("_Decoded", bound=Body)


def decode(decoder: msgspec.json.Decoder[_Decoded], raw: bytes) -> _Decoded:
    """Raises BadRequest."""
    try:
        body = decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise BadRequest("The body is not valid UTF-8.") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from None
    for name, neutral in _NEUTRAL:
        value = getattr(body, name)
        if value is not None and value != neutral and (value or neutral):
            raise unsupported(name)
    return body


_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(.*)`$")


def _invalid(complaint: str) -> BadRequest:
    """msgspec's `Expected ... - at `$.stop[0]`` in OpenAI's words."""
    what, path = cast("re.Match[str]", _PLACE.match(complaint)).group("what", "path")
    if missing := _MISSING.match(what):
        field = f"{path}.{missing[1]}" if path else missing[1]
        return BadRequest(f"Missing required field '{field}'.", param=field, code="missing_required_parameter")
    if not path:
        return BadRequest(f"The body must be a JSON object: {_lower(what)}.")
    return BadRequest(f"Invalid value for '{path}': {_lower(what)}.", param=path)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def unsupported(field: str) -> BadRequest:
    return BadRequest(f"'{field}' is not supported.", param=field, code="unsupported_parameter")
