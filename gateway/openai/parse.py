"""The rules of the two bodies that no single field's type can hold, and their translation into a Request."""

from collections.abc import Sequence
from typing import cast

import msgspec

from gateway.errors import BadRequest
from gateway.openai.body import (
    MAX_CHOICES,
    Body,
    ChatBody,
    CompletionBody,
    Message,
    Part,
    decode,
    unsupported,
)
from gateway.request import Request, ServiceClass
from triton_backend.contract import Sampling

GREEDY_BELOW = 1e-5
"""Dividing logits by less overflows, and the draw would be the maximum anyway."""
SEEDS = 2**62
"""Seeds are taken modulo this, so that seed + choice stays a positive 64-bit integer."""

ROLES = ("system", "developer", "user", "assistant", "tool")
SERVICE_TIERS = {
    "auto": ServiceClass.DEFAULT,
    "default": ServiceClass.DEFAULT,
    "flex": ServiceClass.FLEX,
    "scale": ServiceClass.PRIORITY,
    "priority": ServiceClass.PRIORITY,
    "fast": ServiceClass.PRIORITY,
}

_chat = msgspec.json.Decoder(ChatBody)
_completion = msgspec.json.Decoder(CompletionBody)


def chat(raw: bytes, vocabulary: int) -> Request:
    """Token ids must lie below `vocabulary`.  Raises BadRequest."""
    body = decode(_chat, raw)
    if body.echo:
        raise unsupported("echo")
    if body.add_special_tokens:
        # The template writes them.
        raise unsupported("add_special_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    return _request(
        body,
        vocabulary,
        messages=[_turn(message, f"messages[{i}]") for i, message in enumerate(body.messages)],
        max_tokens=_max_tokens(body),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def completion(raw: bytes, vocabulary: int) -> Request:
    """Token ids must lie below `vocabulary`.  Raises BadRequest."""
    body = decode(_completion, raw)
    if body.add_special_tokens is False:
        raise unsupported("add_special_tokens")
    if body.echo and body.logprobs is not None:
        raise BadRequest(
            "'logprobs' cannot be combined with 'echo': prompt log probabilities are not supported.",
            param="logprobs",
        )
    return _request(
        body,
        vocabulary,
        prompts=_prompts(body.prompt, vocabulary),
        max_tokens=_max_tokens(body),
        logprobs=body.logprobs,
        echo=bool(body.echo),
    )


def _request(
    body: Body,
    vocabulary: int,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    messages: Sequence[dict[str, str]] = (),
    prompts: Sequence[str | list[int]] = (),
    echo: bool = False,
) -> Request:
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise BadRequest(f"'min_tokens' is above 'max_tokens' ({max_tokens}).", param="min_tokens")
    _check_ids(body.stop_token_ids or [], vocabulary, "stop_token_ids")
    options = body.stream_options
    if options is not None and not body.stream:
        raise BadRequest("'stream_options' needs 'stream' to be true.", param="stream_options")
    return Request(
        model=body.model,
        prompts=list(prompts),
        messages=list(messages),
        num_choices=_num_choices(body, len(prompts) or 1),
        max_tokens=max_tokens,
        max_tokens_field="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
        min_tokens=body.min_tokens or 0,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop or [],
        stop_token_ids=body.stop_token_ids or [],
        ignore_eos=bool(body.ignore_eos),
        sampling=_sampling(body, logprobs),
        has_seed=body.seed is not None,
        echo=echo,
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        service_class=_service_class(body.service_tier),
        names_class=body.service_tier not in (None, "", "auto"),
        user=body.user or "",
    )


def _max_tokens(body: Body) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise BadRequest(
            "'max_tokens' and 'max_completion_tokens' differ; send one of them.",
            param="max_completion_tokens",
        )
    return old if new is None else new


def _num_choices(body: Body, num_prompts: int) -> int:
    n = body.n or 1
    if body.best_of is not None and body.best_of != n:
        raise BadRequest(
            "'best_of' other than 'n' is not supported.", param="best_of", code="unsupported_parameter"
        )
    if num_prompts * n > MAX_CHOICES:
        field = "prompt" if num_prompts > MAX_CHOICES else "n"
        raise BadRequest(
            f"{num_prompts} prompts times {n} choices is more than {MAX_CHOICES} for one request.",
            param=field,
        )
    return n


def _sampling(body: Body, logprobs: int | None) -> Sampling:
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        seed=(body.seed or 0) % SEEDS,
        logprobs=logprobs,
    )


def _service_class(tier: str | None) -> ServiceClass:
    try:
        return SERVICE_TIERS[tier or "auto"]
    except KeyError:
        raise BadRequest(
            f"Invalid value for 'service_tier': expected one of {', '.join(SERVICE_TIERS)}.",
            param="service_tier",
        ) from None


def _turn(message: Message, where: str) -> dict[str, str]:
    """`where` is the message's path, for the error."""
    if message.role not in ROLES:
        field = f"{where}.role"
        raise BadRequest(f"Invalid value for '{field}': expected one of {', '.join(ROLES)}.", param=field)
    for name in ("tool_calls", "function_call", "audio"):
        if getattr(message, name):
            raise unsupported(f"{where}.{name}")
    turn = {"role": message.role, "content": _content(message, f"{where}.content")}
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            turn[name] = value
    return turn


def _content(message: Message, where: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role != "assistant":
            raise BadRequest(f"Missing required field '{where}'.", param=where, code="missing_required_parameter")
        return ""
    # Other servers join with a newline too, and the same chat should become the same prompt.
    return "\n".join(_text(part, f"{where}[{i}]") for i, part in enumerate(content))


def _text(part: Part, where: str) -> str:
    if part.type != "text":
        raise BadRequest(
            f"'{where}.type' is not supported: only text parts are.",
            param=f"{where}.type",
            code="unsupported_parameter",
        )
    if part.text is None:
        raise BadRequest(
            f"Missing required field '{where}.text'.",
            param=f"{where}.text",
            code="missing_required_parameter",
        )
    return part.text


def _prompts(prompt: str | Sequence[str | int | list[int]], vocabulary: int) -> Sequence[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    kinds = set(map(type, prompt))
    if kinds == {str}:
        return cast("Sequence[str]", prompt)
    if kinds == {int}:
        ids = cast("list[int]", prompt)
        _check_ids(ids, vocabulary, "prompt")
        return [ids]
    if kinds != {list}:
        raise BadRequest(
            "Invalid value for 'prompt': expected a string, a list of strings, a list of token ids "
            "or a list of lists of token ids.",
            param="prompt",
        )
    lists = cast("Sequence[list[int]]", prompt)
    for i, ids in enumerate(lists):
        if not ids:
            raise BadRequest(
                f"Invalid value for 'prompt[{i}]': expected at least one token id.", param=f"prompt[{i}]"
            )
        _check_ids(ids, vocabulary, f"prompt[{i}]")
    return lists


def _check_ids(ids: Sequence[int], vocabulary: int, where: str) -> None:
    if ids and max(ids) >= vocabulary:
        raise BadRequest(f"Invalid value for '{where}': token ids must be below {vocabulary}.", param=where)
