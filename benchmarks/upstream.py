"""An OpenAI server without a model: `python -m benchmarks.upstream PORT STEP_US`.

It answers at once, or streams a token to everybody every STEP_US microseconds.  What stands before it in
`benchmarks/gateway.py --peer` has all the work to do.
"""

import asyncio
import json
import sys

from aiohttp import web

MODEL = "demo"
HEAD = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL}


class Server:
    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    async def completion(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        tokens = body["max_tokens"]
        if not body.get("stream"):
            choice = {"index": 0, "text": " word" * tokens, "logprobs": None, "finish_reason": "length"}
            usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
            return web.json_response(HEAD | {"choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        token, last = _event(None), _event("length") + b"data: [DONE]\n\n"
        for _ in range(tokens - 1):
            await response.write(token)
            await asyncio.sleep(self._step_s)
        await response.write(last)
        return response


def _event(finish_reason: str | None) -> bytes:
    choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": finish_reason}
    return b"data: %b\n\n" % json.dumps(HEAD | {"choices": [choice]}).encode()


async def models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


def main(port: int, step_us: int) -> None:
    app = web.Application()
    answers = Server(step_us / 1e6)
    app.add_routes([web.post("/v1/completions", answers.completion), web.get("/v1/models", models)])
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=lambda *_: None)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
