"""`bucketserve up`: everything on this machine, in the foreground."""

import asyncio
import json
import socket
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from gateway import listening, local
from gateway.errors import Failed
from gateway.settings import Settings, model_name

POLL_S = 0.05
SAY_S = 5.0
MODEL_JSON = (
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json"),
)
"""What is read of a model, where it is there."""


def run(settings: Settings, arguments: Sequence[str]) -> int:
    """The exit status.  `arguments` are those after `up`: the gateway gets them too.  Raises Failed."""
    for port in (settings.port, *settings.own_ports):
        _check_free(settings.host, port)
    if not settings.triton and Path(settings.model).is_dir():
        _check_files(Path(settings.model))
    return local.supervise(_up(settings, arguments))


def _check_free(host: str, port: int) -> None:
    """Before anything starts, for a clear word instead of a dead gateway half a minute later."""
    with listening.told(host, port):
        socket.create_server((host, port), family=_family(host)).close()


def _check_files(model: Path) -> None:
    """As far as one can see at once: engine and tokenizer would tell of it only when all else has started."""
    for pattern in ("config.json", "*.safetensors"):
        if not any(model.glob(pattern)):
            raise Failed(f"no {pattern} in {model}; --model takes a folder in Hugging Face format")
    for file in map(model.joinpath, MODEL_JSON):
        try:
            json.loads(file.read_bytes())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Failed(f"cannot read {file}: {error.strerror}") from None
        except ValueError as error:
            raise Failed(f"{file} is not JSON ({error}); fetch it again") from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


async def _up(settings: Settings, arguments: Sequence[str]) -> None:
    started_s = asyncio.get_running_loop().time()
    async with local.Stack(
        model=_absolute(settings.model),
        replicas=settings.replicas,
        redis_url=settings.redis.get_secret_value() if settings.redis else None,
        triton=",".join(settings.triton) or None,
        device=settings.device,
        dtype=settings.dtype,
        kv_budget_bytes=settings.kv_budget,
        threads=settings.threads,
        context_tokens=settings.context_tokens,
        load_timeout_s=settings.load_timeout_s,
        step_records=settings.step_records,
        run_dir=settings.run_folder,
        say=_say,
    ) as stack:
        given = [*arguments, *_started(settings, stack)]
        if not settings.own_ports:
            await stack.start_gateway(given)
        children = [await stack.start_gateway([*given, "--own-port", str(port)]) for port in settings.own_ports]
        # One of several gateways may die; the others serve on.
        restarts = [*stack.tritons, *(child.name for child in children)]
        await asyncio.gather(stack.wait(restarts), _announce(settings, started_s))


def _absolute(model: str) -> str:
    """A folder's whole path, as engines run elsewhere; an id as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _started(settings: Settings, stack: local.Stack) -> list[str]:
    """Where to find what was started here.  What was given the gateway reads from where we did, so that a
    password in the environment does not become visible as a flag."""
    redis = [] if settings.redis else ["--redis", stack.redis_url]
    return redis + ([] if settings.triton else ["--triton", stack.triton_address])


async def _announce(settings: Settings, started_s: float) -> None:
    """Say what is missing until nothing is, and then how to ask."""
    url = _url(settings.host, settings.port)
    model = model_name(settings)
    async with aiohttp.ClientSession() as client:
        for port in settings.own_ports or [settings.port]:
            await _ready(client, _url(settings.host, port))
    took_s = asyncio.get_running_loop().time() - started_s
    alone = f" (each gateway alone: ports {_range(settings.own_ports)})" if settings.own_ports else ""
    _say(f"ready after {took_s:.1f} s: {model} on {url}{alone}.  Ctrl-C ends it.  Try:")
    needs_key = bool(settings.api_keys or settings.keys_file or settings.redis_keys)
    print(f"\n{_example(url, model, needs_key)}\n", flush=True)


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _range(ports: Sequence[int]) -> str:
    return f"{ports[0]} to {ports[-1]}"


async def _ready(client: aiohttp.ClientSession, url: str) -> None:
    while True:
        for _ in range(round(SAY_S / POLL_S)):
            missing = await _missing(client, url)
            if missing == []:
                return
            await asyncio.sleep(POLL_S)
        _say("waiting: " + "; ".join(missing or ["the gateway does not answer yet"]))


async def _missing(client: aiohttp.ClientSession, url: str) -> list[str] | None:
    """Why the gateway is not ready; None while it does not answer at all."""
    try:
        async with client.get(f"{url}/ready") as response:
            return list((await response.json())["reasons"])
    except aiohttp.ClientError:
        return None


def _example(url: str, model: str, needs_key: bool) -> str:
    question = {"role": "user", "content": "Tell me a short story about a fox."}
    body = json.dumps({"model": model, "stream": True, "messages": [question]})
    key = " -H 'authorization: Bearer YOUR-KEY'" if needs_key else ""
    return f"  curl -N {url}/v1/chat/completions -H 'content-type: application/json'{key} -d '{body}'"


def _say(line: str) -> None:
    print(f"bucketserve: {line}", flush=True)
