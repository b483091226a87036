"""Where settings come from and how they are named: the only reader of the environment and the config file."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from gateway.settings import RedisUrl, Settings

ENV_PREFIX = "BUCKETSERVE_"
CONFIG_ENV = ENV_PREFIX + "CONFIG"
NO_SETTINGS = {CONFIG_ENV, ENV_PREFIX + "RUN", ENV_PREFIX + "API_KEY"}
"""Variables of ours that are none: the config file, the mark by which `up` finds its processes, and the key that
`bench` sends."""
SERVICE_LINK = re.compile(
    r"\w+(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP)(_PROTO|_PORT|_ADDR)?)=.*|\w+_PORT=(tcp|udp)://.*"
)
"""Kubernetes tells every pod of each Service in such variables, of one named `bucketserve` under our prefix."""
UNITS = {
    "s": "SECONDS",
    "bytes": "BYTES",
    "budget": "BYTES",
    "tokens": "TOKENS",
    "rows": "REQUESTS",
    "tickets": "REQUESTS",
    "share": "FRACTION",
    "factor": "FRACTION",
    "triton": "HOST:PORT",
    "redis": "URL",
    "gateways": "COUNT",
    "port": "PORT",
    "replicas": "COUNT",
    "threads": "COUNT",
    "model": "FOLDER|ID",
    "keys": "KEYS",
    "file": "FILE",
    "name": "NAME",
    "device": "DEVICE",
    "host": "ADDRESS",
    "records": "FOLDER",
    "folder": "FOLDER",
}
"""Last word of a setting's name -> what its value is counted in."""


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line for whoever gave it."""


class Option(NamedTuple):
    """One leaf of the tree under its three names."""

    path: tuple[str, ...]
    field: FieldInfo

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def env(self) -> str:
        return ENV_PREFIX + "__".join(self.path).upper()

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def parts(self) -> list[object]:
        """The setting's type, or the types of which it may be one."""
        return [self.field.annotation, *get_args(self.field.annotation)]

    @property
    def is_list(self) -> bool:
        return any(get_origin(part) is tuple for part in self.parts)

    @property
    def unit(self) -> str:
        choices = [part for part in self.parts if get_origin(part) is Literal]
        if choices:
            return "|".join(get_args(choices[0]))
        if bool in self.parts:
            return "true|false"
        last = self.path[-1]
        return UNITS.get(last.rsplit("_", 1)[-1], last.upper())

    @property
    def is_secret(self) -> bool:
        return SecretStr in self.parts or RedisUrl in self.parts


class Given(NamedTuple):
    """A value as somebody gave it, not yet checked."""

    value: object
    source: str


class Loaded(NamedTuple):
    settings: Settings
    sources: Mapping[str, str]
    """Where each setting that is not a default came from."""


def _options(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Option]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _options(field.annotation, (*path, name))
        else:
            yield Option((*path, name), field)


DEFAULTS = Settings()
OPTIONS = {option.name: option for option in _options(Settings)}
SECTIONS = {".".join(option.path[:end]) for option in OPTIONS.values() for end in range(1, len(option.path))}


def value_of(settings: Settings, option: Option) -> object:
    value: object = settings
    for name in option.path:
        value = getattr(value, name)
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def load(flags: Mapping[str, object], environ: Mapping[str, str]) -> Loaded:
    """The effective settings; `flags` are keyed by option name, and `config` names the file.  Raises
    SettingsError."""
    file = flags.get("config") or environ.get(CONFIG_ENV)
    given = {
        **(_from_file(Path(str(file))) if file else {}),
        **_from_environ(environ),
        **{name: Given(value, OPTIONS[name].flag) for name, value in flags.items() if name in OPTIONS},
    }
    try:
        settings = Settings.model_validate(_nested(given))
    except ValidationError as error:
        raise SettingsError(_explain(error, given)) from None
    return Loaded(settings, {name: value.source for name, value in given.items()})


def _from_file(file: Path) -> dict[str, Given]:
    try:
        tree = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"config file {file}: {reason}") from None
    flat = dict(_flat(tree))
    for name in flat:
        if name not in OPTIONS:
            raise SettingsError(f"{file}: no setting '{name}'; did you mean '{nearest(name, OPTIONS)}'?")
    return {name: Given(value, str(file)) for name, value in flat.items()}


def _flat(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict) and (value or prefix + name in SECTIONS):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _from_environ(environ: Mapping[str, str]) -> dict[str, Given]:
    known = {option.env: name for name, option in OPTIONS.items()}
    ours = {
        env: value
        for env, value in environ.items()
        if env.startswith(ENV_PREFIX) and env not in NO_SETTINGS and not SERVICE_LINK.fullmatch(f"{env}={value}")
    }
    for env in ours:
        if env not in known:
            suggestion = nearest(env, [*known, CONFIG_ENV])
            raise SettingsError(f"no setting for the variable {env}; did you mean {suggestion}?")
    # An empty variable counts as none: Compose cannot leave one out.
    return {known[env]: Given(value, env) for env, value in ours.items() if value}


def _nested(given: Mapping[str, Given]) -> dict[str, object]:
    """The dotted names as a tree, over the defaults: a class's targets have none of their own."""
    tree: dict[str, object] = {"classes": DEFAULTS.classes.model_dump()}
    for name, (value, _) in given.items():
        *sections, last = OPTIONS[name].path
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})  # type: ignore[assignment]
        branch[last] = value
    return tree


def _explain(error: ValidationError, given: Mapping[str, Given]) -> str:
    """The first complaint, with the name that the user used; a secret's value is not repeated."""
    first = error.errors()[0]
    names = [str(part) for part in first["loc"] if not isinstance(part, int)]
    name = next((".".join(names[:end]) for end in (3, 2, 1) if ".".join(names[:end]) in OPTIONS), None)
    message = first["msg"].removeprefix("Value error, ")
    if name is None:
        return f"{'.'.join(names)}: {message}"
    shown = "" if OPTIONS[name].is_secret else f" = {first['input']!r}"
    return f"{name}{shown} (from {given[name].source}): {message}"


def show(loaded: Loaded) -> str:
    """The effective settings as TOML that can be fed back, and where each came from; secrets are hidden."""
    lines = []
    section: tuple[str, ...] = ()
    for option in OPTIONS.values():
        if option.path[:-1] != section:
            section = option.path[:-1]
            lines.append(f"\n[{'.'.join(section)}]")
        value = value_of(loaded.settings, option)
        line = f"{option.path[-1]} = {_toml(value)}"
        hidden = value is None or (option.is_secret and value != ())
        lines.append(("# " if hidden else "") + f"{line}  # {loaded.sources.get(option.name, 'default')}")
    return "\n".join(lines)


def _toml(value: object) -> str:
    match value:
        case None:
            return "not set"
        case SecretStr():
            return json.dumps(_without_password(value.get_secret_value()))
        case Path():
            return json.dumps(str(value))
        case tuple():
            return "[" + ", ".join("hidden" if isinstance(i, SecretStr) else _toml(i) for i in value) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{'***@' if login else ''}{host}{parts.path}"
