"""`bucketserve bench` against a small OpenAI server in this process's other thread."""

import asyncio
import csv
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.__main__ import main

TRACE = "arrival_s,prompt_tokens,output_tokens\n0,12,3\n0.01,40,5\n0.02,7,1\n"
Reply = Callable[[int, dict[str, Any]], list[bytes] | web.Response | None]
"""Number of the request (0 is the probe) and its body -> events, another answer, or none ever."""


class Served:
    """What the server was asked, and how it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.reply: Reply = lambda number, body: stream(body)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        reply = self.reply(number, body)
        if reply is None:
            await asyncio.Event().wait()
        if isinstance(reply, web.Response):
            return reply
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for part in reply or ():
            await response.write(part)
        return response

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})


def event(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def stream(body: dict[str, Any]) -> list[bytes]:
    """A token an event, counted by the server."""
    size = len(body["prompt"]) if "prompt" in body else len(body["messages"][0]["content"].split())
    usage = [{"prompt_tokens": size, "completion_tokens": count + 1} for count in range(body["max_tokens"])]
    said = {"text": "a"} if "prompt" in body else {"delta": {"content": "a"}}
    events = [event({"choices": [said], "usage": each}) for each in usage]
    return [*events, event({"choices": [], "usage": usage[-1]}), b"data: [DONE]\n\n"]


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.add_routes(
        [
            web.post("/v1/completions", server.answer),
            web.post("/v1/chat/completions", server.answer),
            web.get("/v1/models", server.models),
        ]
    )
    runner = web.AppRunner(app, handler_cancellation=True)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    server.url = "http://{}:{}".format(*runner.addresses[0])
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(runner.cleanup())
    loop.close()


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return str(path)


def bench(served: Served, *argv: str, status: int = 0, **environ: str) -> None:
    assert main(["bench", "--url", served.url, *argv], environ) == status


# The whole command


def test_a_trace_from_its_file_to_the_folder(served: Served, trace: str, tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    bench(served, "--trace", trace, "--rates", "100,50", "--requests", "6", "--out", str(out))
    assert len(served.bodies) == 1 + 2 * 6
    report = json.loads((out / "report.json").read_text())
    assert report["model"] == "tiny"
    assert report["options"]["trace"] == trace
    assert [run["rate"] for run in report["runs"]] == [50.0, 100.0]
    total = report["runs"][0]["report"]["total"]
    assert (total["requests"], total["finished"], total["attainment"]) == (6, 6, 1.0)
    assert report["goodput_at_attainment"] == {"0.9": 100.0, "0.8": 100.0}
    assert report["runs"][0]["client"]["sent"] == 6
    with (out / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert [row["prompt_tokens"] for row in rows[:3]] == ["12", "40", "7"]
    assert [row["output_tokens"] for row in rows[:3]] == ["3", "5", "1"]
    assert {row["ending"] for row in rows} == {"finished"}
    assert all(float(row["e2e_s"]) >= float(row["ttft_s"]) > 0.0 for row in rows)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(out.glob("*.png"))) == 6


def test_what_is_asked_for(served: Served, trace: str) -> None:
    targets = ("--mix", "priority:1:500:100", "--slo-scale", "2")
    bench(served, "--trace", trace, *targets, "--vocabulary", "300", OPENAI_API_KEY="secret")
    body = served.bodies[2]
    assert {name: body[name] for name in body if name != "prompt"} == {
        "model": "tiny",
        "max_tokens": 5,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "service_tier": "priority",
    }
    assert len(body["prompt"]) == 40
    assert min(body["prompt"]) >= 100 and max(body["prompt"]) < 300
    headers = served.headers[2]
    assert (headers["x-slo-ttft-ms"], headers["x-slo-tpot-ms"]) == ("1000", "200")
    assert headers["authorization"] == "Bearer secret"


def test_our_own_variable_for_the_key_goes_first(served: Served, trace: str) -> None:
    bench(served, "--trace", trace, OPENAI_API_KEY="other", BUCKETSERVE_API_KEY="ours")
    assert served.headers[0]["authorization"] == "Bearer ours"
    assert main(["config"], {"BUCKETSERVE_API_KEY": "ours"}) == 0


def test_a_chat_in_words(served: Served, trace: str) -> None:
    bench(served, "--trace", trace, "--endpoint", "chat", "--model", "named")
    (message,) = served.bodies[2]["messages"]
    assert (message["role"], len(message["content"].split())) == ("user", 40)
    assert served.bodies[2]["model"] == "named"
    assert "x-slo-ttft-ms" not in served.headers[2]


def test_how_far_the_promises_are_kept_is_said_in_words(
    served: Served, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(served, "--trace", trace, "--rates", "50,100", "--requests", "3")
    assert "Attainment: 90% up to 100 req/s and perhaps beyond, 80% up to" in capsys.readouterr().out
    bench(served, "--trace", trace, "--rates", "50,100", "--requests", "3", "--slo-ttft-ms", "0.001")
    assert "Attainment: 90% not even at the lowest rate, 80% not" in capsys.readouterr().out


def test_endings_are_told_apart(
    served: Served, trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = web.json_response({"error": {"message": "too  busy"}}, status=429, headers={"retry-after-ms": "2500"})
    replies: list[list[bytes] | web.Response] = [
        busy,
        web.Response(status=500, text="oops"),
        [event({"choices": [{"text": "a"}]}), event({"error": {"message": "engine lost"}})],
        [event({"choices": [{"text": "a"}]})],
        [b"data: {\n\n"],
        [event({"choices": [{"text": "a"}]}), b"data: [DONE]\n\n"],
    ]
    served.reply = lambda number, body: stream(body) if number == 0 else replies[number - 1]
    bench(served, "--trace", trace, "--rate", "20", "--requests", "6", "--out", str(tmp_path))
    out = capsys.readouterr().out
    assert out.splitlines()[2].split()[2:7] == ["6", "1", "1", "4", "0"]
    for words in (
        "1 times: HTTP 429: too busy",
        "1 times: HTTP 500: oops",
        "1 times: engine lost",
        "1 times: the stream ended before its end",
        "1 times: unreadable event",
        "refused clients were told to wait 2.5 s (median)",
    ):
        assert words in out
    with (tmp_path / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ending"] for row in rows] == ["rejected", *["failed"] * 4, "finished"]
    assert [bool(row["ttft_s"]) for row in rows] == [False, False, True, True, False, True]
    assert json.loads((tmp_path / "report.json").read_text())["runs"][0]["client"]["short_answers"] == 0


def test_an_answer_that_takes_too_long_has_expired(
    served: Served, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served.reply = lambda number, body: None if number == 2 else stream(body)
    bench(served, "--trace", trace, "--timeout-s", "0.3")
    out = capsys.readouterr().out
    assert out.splitlines()[2].split()[2:7] == ["3", "2", "0", "0", "1"]
    assert "1 times: no complete answer within --timeout-s" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "one of the arguments --workload --trace is required"),
        (("--workload", "alpaca"), "a rate is needed"),
        (("--workload", "alpacas", "--rate", "1"), "invalid choice: 'alpacas'"),
        (("--workload", "alpaca", "--rate", "0"), "--rate: '0' is no positive number"),
        (("--workload", "alpaca", "--rates", "1,x"), "--rates: 'x' is no number"),
        (("--workload", "alpaca", "--rate", "1", "--requests", "1.5"), "--requests: '1.5' is no positive whole"),
        (("--workload", "alpaca", "--rate", "1", "--mix", "bulk:1"), "'bulk:1' is not TIER:SHARE"),
        (("--workload", "alpaca", "--rate", "1", "--mix", "flex:1:5"), "'flex:1:5' is not TIER:SHARE"),
        (("--workload", "alpaca", "--rate", "1", "--mix", "flex:1,flex:2"), "a class stands twice"),
        (("--workload", "alpaca", "--rate", "1", "--arrivals", "trace"), "no arrival times of its own"),
        (("--workload", "alpaca", "--rate", "1", "--vocabulary", "9"), "--vocabulary: at least 101"),
        (("--workload", "alpaca", "--rate", "1", "--tokenizer", "x"), "--tokenizer is for --endpoint chat"),
        (("--workload", "alpaca", "--rate", "1", "--url", "h:1"), "expected http:// or https://"),
        (("--workload", "alpaca", "--rate", "1", "--out", "/dev/null/x"), "--out /dev/null/x: Not a directory"),
        (("--trace", "nowhere.csv"), "trace nowhere.csv: No such file"),
        (("--workload", "alpaca", "--rate", "1", "--port", "1"), "unrecognized arguments: --port 1"),
        (("--workload", "alpaca", "--rate", "1", "--url", "http://127.0.0.1:1"), "does not answer"),
    ],
)
def test_wrong_calls_get_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], words: str
) -> None:
    assert main(["bench", *argv], {}) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bucketserve: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_a_server_that_refuses_at_once_is_told_at_once(
    served: Served, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served.reply = lambda number, body: web.json_response({"error": {"message": "wrong key"}}, status=401)
    bench(served, "--trace", trace, status=2)
    assert "refuses a first short request: HTTP 401: wrong key" in capsys.readouterr().err
    assert len(served.bodies) == 1


def test_ctrl_c_leaves_the_report_of_what_came(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "slow.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,2\n0.001,5,2\n3600,5,2\n")

    def reply(number: int, body: dict[str, Any]) -> list[bytes]:
        if number == 2:
            # The next arrival is an hour away.
            os.kill(os.getpid(), signal.SIGINT)
        return stream(body)

    served.reply = reply
    bench(served, "--trace", str(path), "--out", str(tmp_path / "out"), status=1)
    assert "Interrupted" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["interrupted"] is True
    (run,) = report["runs"]
    assert run["client"]["sent"] == 2
    assert run["report"]["total"]["requests"] + run["client"]["unanswered"] == 2


def test_ctrl_c_before_anything_is_one_line(
    served: Served, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(number: int, body: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    served.reply = reply
    bench(served, "--trace", trace, status=1)
    assert capsys.readouterr() == ("", "bucketserve: interrupted while nothing was measured\n")


def test_help_has_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--help"], {})
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "default: http://127.0.0.1:8000",
        "--duration-s SECONDS",
        "(default: 600.0)",
        "OPENAI_API_KEY only",
    ):
        assert words in text
    assert "None" not in text
