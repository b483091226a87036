"""Every setting, in one frozen tree: its meaning, unit and default's reason.

A value comes from the config file (TOML), then the environment, then a flag; the later wins (options.py).
Objects receive values, not Settings.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

from gateway.request import ServiceClass
from gateway.store import urls

DEMO_MODEL = str(Path(__file__).parents[1] / "triton_backend" / "demo" / "model")
Dtype = Literal["float32", "bfloat16", "float16"]
Policy = Literal["full", "bucketserve", "uellm", "continuous", "static"]


def _split(value: object) -> object:
    """A list may be given as one text with commas, or as several such texts."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [part.strip() for item in value for part in item.split(",") if part.strip()]
    return value


def _redis_url(value: object) -> object:
    if isinstance(value, str):
        urls.parse(value)
    return value


def _matching(pattern: str, words: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(words)
        return value

    return AfterValidator(check)


RedisUrl = Annotated[SecretStr, BeforeValidator(_redis_url)]
Address = Annotated[str, _matching(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):[0-9]{1,5}", "should be HOST:PORT")]
DEVICE = r"cpu|cuda(:[0-9]+)?"
Device = Annotated[str, _matching(DEVICE, "should be cpu, cuda or cuda:N")]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class Http(Section):
    max_body_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(4 * 1024**2)
    """Largest request body; a longer one is a 413.  Ten times the text of a 100,000-token prompt.

    From 256 KiB on a body is parsed in a process of its own, started at the first one, so that no stream waits.
    """
    body_timeout_s: PositiveFloat = 30.0
    """Longest wait for a whole request body, so that slow senders hold nothing for long."""
    keepalive_s: PositiveFloat = 10.0
    """Pause after which a waiting stream gets a comment line; proxies cut silent ones after 30 s or more."""
    slow_client_s: PositiveFloat = 30.0
    """How long a client may leave its stream unread before it counts as gone."""
    grace_s: PositiveFloat = 25.0
    """Time that streams get to finish after SIGTERM; less than the 30 s after which orchestrators kill."""


class Queue(Section):
    max_tickets: PositiveInt = 10_000
    """Bound on queued requests (choices counted singly); beyond it a 429."""
    max_tokens: PositiveInt = 8_000_000
    """Bound on the queued prompts' tokens."""
    max_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(256 * 1024**2)
    """Bound on the queued payloads, which live in Redis's memory."""


class ClassTargets(Section):
    share: Annotated[float, Field(gt=0, le=1)]
    """Part of the prefill tokens while all classes wait; unused parts pass on.  Only the ratios count."""
    ttft_s: PositiveFloat
    """Target for the time to the first token where a request names none; sets its place in the queue."""
    tpot_s: PositiveFloat
    """Target for the time per further token where a request names none."""


class Classes(Section):
    """The classes are OpenAI's `service_tier`."""

    priority: ClassTargets = ClassTargets(share=0.6, ttft_s=1.0, tpot_s=0.1)
    default: ClassTargets = ClassTargets(share=0.3, ttft_s=5.0, tpot_s=0.2)
    flex: ClassTargets = ClassTargets(share=0.1, ttft_s=120.0, tpot_s=1.0)

    def targets(self) -> dict[ServiceClass, ClassTargets]:
        return {name: getattr(self, name) for name in ServiceClass}


class Scheduling(Section):
    max_rows: PositiveInt = 256
    """Most requests that run on a replica at once, however much memory it has."""
    max_batch_rows: PositiveInt = 64
    """Most requests sent to a replica in one batch."""
    max_prefill_tokens: PositiveInt | None = None
    """Most prompt tokens (padded) that wait in an engine; by default as many as it runs in four steps."""
    bulk_order: Literal["sjf", "ljf"] = "sjf"
    """Order of waiting flex requests: shortest job first answers most of them soon, longest job first keeps the
    engine fullest."""
    safety_factor: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Part of the KV memory that batches are planned into; the rest absorbs answers longer than predicted."""


class Store(Section):
    connect_timeout_s: PositiveFloat = 1.0
    """Longest wait for a connection to Redis."""
    timeout_s: PositiveFloat = 1.0
    """Longest wait for an answer from Redis; a third of the driver's lease, so that a frozen Redis is noticed
    before a lease runs out."""


class Driver(Section):
    lease_s: PositiveFloat = 3.0
    """How long a replica's driver stays elected without renewing: the pause if it dies."""
    renew_s: PositiveFloat = 0.5
    """Pause between renewals, with which the others also learn how the replica stands; several may fail before the
    lease is lost."""

    @model_validator(mode="after")
    def _renewed_in_time(self) -> "Driver":
        if self.renew_s >= self.lease_s:
            raise ValueError("renew_s must be less than lease_s")
        return self


class Origin(Section):
    audit_s: PositiveFloat = 2.0
    """Pause between checks that the store still knows every live request."""
    progress_timeout_s: PositiveFloat = 30.0
    """A running request without news for this long is put back; well above the longest step."""


class Resume(Section):
    mode: Literal["strict", "fast", "off"] = "strict"
    """What is kept of streams, to go on with after a broken connection or a gateway's death: strict sends a token
    once it is logged in Redis (waiting 20 ms at most), fast does not wait, off keeps nothing."""
    ttl_s: Annotated[float, Field(ge=10)] = 60.0
    """How long a stream can be gone on with after its end, or after its client or gateway is gone; well above the
    origin's audits, which prolong it."""
    max_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(4 * 1024**2)
    """Largest record and log of a stream, in Redis's memory: 6 bytes a token without log probabilities.  A longer
    one cannot be gone on with."""


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["auto", "text", "json"] = "auto"
    """`auto` writes text on a terminal and JSON lines elsewhere."""


class Settings(Section):
    model: Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)] = DEMO_MODEL
    """Folder or Hugging Face id of the model; by default the demo model that comes with bucketserve."""
    model_name: Annotated[str, Field(min_length=1)] | None = None
    """What clients call the model; by default the folder's name or the Hugging Face id."""
    host: str = "127.0.0.1"
    """Address to listen on; only this machine by default, as there is no key by default either."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    own_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """A second port to listen on, of this gateway alone, where several on one machine share `port`."""
    gateways: PositiveInt = 1
    """Number of gateways that `up` starts; several share `port`, and the first is also on the port after it, the
    second on the next and so on."""
    replicas: PositiveInt = 1
    """Number of engines that `up` starts."""
    redis: RedisUrl | None = None
    """URL of a running Redis or Valkey, of its Sentinels or its Cluster; without it `up` starts its own."""
    triton: Addresses = ()
    """gRPC address HOST:PORT of a running Triton, several with commas or by repeating; without it `up` starts
    its own."""
    device: Device | None = None
    """Where the engines that `up` starts run: cpu, cuda or cuda:N; by default cpu."""
    dtype: Dtype | None = None
    """Precision of those engines; by default float32; on a GPU bfloat16 is what most want."""
    kv_budget: Annotated[ByteSize, Field(gt=0)] | None = None
    """Most KV memory of each of those engines, such as 512MiB; by default what there is room for."""
    threads: PositiveInt | None = None
    """CPU threads of each of those engines; by default the cores, or what a container leaves of them,
    divided among them."""
    context_tokens: PositiveInt | None = None
    """Longest prompt and answer together; by default the model's own limit."""
    load_timeout_s: PositiveFloat = 1800.0
    """Longest that each of those engines may take to load its model; then it is given up, and what it was doing
    stands in its Triton's log."""
    step_records: Path | None = None
    """Folder where each of those engines writes the size and time of every step, for `bucketserve fit`."""
    run_folder: Path | None = None
    """Folder for the logs of all that `up` starts, kept for the next run to add to; by default a fresh one,
    removed at the end."""
    policy: Policy = "full"
    """How requests are admitted, ordered and grouped: full is ours, the others are the papers' and common ones to
    compare with."""
    api_keys: Secrets = ()
    """Keys of which clients must send one, with commas between, all of them without bounds.  Best given in the
    environment or the file: flags show in the process list."""
    keys_file: Path | None = None
    """TOML file of keys and of what each allows (`bucketserve key` makes them), read again when it changes."""
    redis_keys: bool = False
    """Let in the keys, too, that `bucketserve key --redis` has put into Redis.  Without any of the three no key is
    asked for."""
    http: Http = Http()
    queue: Queue = Queue()
    classes: Classes = Classes()
    scheduling: Scheduling = Scheduling()
    store: Store = Store()
    driver: Driver = Driver()
    origin: Origin = Origin()
    resume: Resume = Resume()
    log: Log = Log()

    @model_validator(mode="after")
    def _has_ports(self) -> "Settings":
        if self.gateways > 1 and self.port + self.gateways > 65535:
            raise ValueError(f"{self.gateways} gateways need as many ports after {self.port}")
        return self

    @property
    def own_ports(self) -> list[int]:
        """Of the gateways that `up` starts, where they are several."""
        return [self.port + 1 + number for number in range(self.gateways)] if self.gateways > 1 else []


def model_name(settings: Settings) -> str:
    """What clients call the model."""
    if settings.model_name:
        return settings.model_name
    if settings.model == DEMO_MODEL:
        return "demo"
    return Path(settings.model).name if Path(settings.model).is_dir() else settings.model
