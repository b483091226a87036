"""The command line.

Exit status: 0 after SIGINT or SIGTERM, 1 if something that should run does not, 2 if it was called wrongly.
"""

import argparse
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ByteSize

from gateway import __version__, key_command, keyring, options
from gateway import up as bringing_up
from gateway.errors import Failed, StoreLost
from gateway.keyring import BadKeys
from gateway.options import OPTIONS, Loaded, Option, SettingsError
from gateway.settings import Settings

EPILOG = """\
Every option may also stand in the config file (TOML; `bucketserve config` prints one) or in the environment.
A flag goes before the environment, the environment before the file.  --http-grace-s, for example, is
`grace_s` in section [http], and BUCKETSERVE_HTTP__GRACE_S.
"""


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0] in TOOLS:
            return TOOLS[argv[0]](argv[1:], environ)
        command, flags = parse(argv)
        return COMMANDS[command](options.load(flags, environ), argv[1:])
    except SettingsError as error:
        print(f"bucketserve: {error}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"bucketserve: {error}", file=sys.stderr)
        return 1


def up(loaded: Loaded, arguments: Sequence[str]) -> int:
    """Start what is not given (Valkey, Triton with the engine) and a gateway, all in the foreground."""
    _check(loaded.settings)
    return bringing_up.run(loaded.settings, arguments)


def gateway(loaded: Loaded, arguments: Sequence[str]) -> int:
    """Run one gateway against a given Redis and Triton."""
    for name in ("redis", "triton"):
        if not getattr(loaded.settings, name):
            raise SettingsError(
                f"`bucketserve gateway` needs {OPTIONS[name].flag}; `bucketserve up` starts its own"
            )
    _check(loaded.settings)
    # Here, not above: the tokenizer's library takes a second to load, and the other commands do not use it.
    from gateway import app

    _allow_many_connections()
    return app.run(loaded.settings)


def _check(settings: Settings) -> None:
    """Before anything starts, for one line instead of a dead gateway's log."""
    _check_model(settings.model)
    try:
        if settings.keys_file:
            keyring.read_file(settings.keys_file)
    except BadKeys as bad:
        raise SettingsError(str(bad)) from None


def _check_model(model: str) -> None:
    if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise Failed(f"no model folder {model}; --model takes a folder or a Hugging Face id")


def _allow_many_connections() -> None:
    """A stream takes a file, and the usual soft limit of 1,024 is far below what the machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def config(loaded: Loaded, arguments: Sequence[str]) -> int:
    """Print the effective settings as TOML, secrets hidden, and where each came from."""
    print(options.show(loaded))
    return 0


def bench(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Put an open-loop load on any OpenAI server, and report throughput, latencies and kept promises."""
    # Here, not above: none of the others needs what it loads.
    from gateway.bench import command
    from gateway.bench import options as bench_options

    parser = Parser(
        prog="bucketserve bench",
        usage="bucketserve bench (--workload NAME | --trace FILE) [OPTION ...]",
        description=bench.__doc__,
        epilog=f"A key that the server asks for is read from {' or '.join(bench_options.KEY_ENVS)} only.",
        allow_abbrev=False,
    )
    bench_options.add(parser)
    return command.start(parser.parse_args(argv), environ)


def simulate(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the scheduler itself over simulated replicas, and compare policies."""
    from gateway.simulator import command
    from gateway.simulator import options as simulator_options

    parser = Parser(
        prog="bucketserve simulate",
        usage="bucketserve simulate (--workload NAME | --trace FILE) [OPTION ...]",
        description=simulate.__doc__,
        allow_abbrev=False,
    )
    simulator_options.add(parser)
    return command.start(parser.parse_args(argv))


def fit(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Measure the engine's steps on this machine, and fit the cost model that `simulate --cost` takes."""
    from gateway.simulator import fitting

    parser = Parser(prog="bucketserve fit", description=fit.__doc__, allow_abbrev=False)
    fitting.add(parser)
    given = parser.parse_args(argv)
    if given.model:
        _check_model(given.model)
    return fitting.start(given)


def key(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Make an API key: it is shown once, and its record goes into the keys file or into Redis."""
    parser = Parser(prog="bucketserve key", description=key.__doc__, allow_abbrev=False)
    key_command.add(parser)
    try:
        said, record = key_command.start(parser.parse_args(argv), environ)
    except StoreLost as lost:
        raise Failed(f"{lost}; --redis names another") from None
    print(f"bucketserve: {said}", file=sys.stderr)
    if record:
        print(f"\n{record}")
    return 0


COMMANDS: dict[str, Callable[[Loaded, Sequence[str]], int]] = {"up": up, "gateway": gateway, "config": config}
TOOLS: dict[str, Callable[[Sequence[str], Mapping[str, str]], int]] = {
    "bench": bench,
    "simulate": simulate,
    "fit": fit,
    "key": key,
}
"""Commands that know nothing of the settings and have options of their own."""


class Parser(argparse.ArgumentParser):
    """Errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def parse(argv: Sequence[str]) -> tuple[str, dict[str, object]]:
    """The command, and the flags by option name.  Raises SettingsError."""
    namespace, unknown = parser().parse_known_args(argv)
    if unknown:
        given = unknown[0].partition("=")[0]
        if not given.startswith("-"):
            raise SettingsError(f"unexpected argument '{given}'")
        flags = ["--config", *(option.flag for option in OPTIONS.values())]
        raise SettingsError(f"no option {given}; did you mean {options.nearest(given, flags)}?")
    flags_by_name = vars(namespace)
    return flags_by_name.pop("command"), flags_by_name


def parser() -> Parser:
    parser = Parser(prog="bucketserve", description="An LLM serving gateway.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"bucketserve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        described = command.__doc__
        _add_options(
            commands.add_parser(
                name,
                help=described,
                usage=f"bucketserve {name} [OPTION ...]",
                description=described,
                epilog=EPILOG,
                allow_abbrev=False,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    for name, tool in TOOLS.items():
        commands.add_parser(name, help=tool.__doc__, add_help=False)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help=f"Settings in TOML ({options.CONFIG_ENV}).",
    )
    groups: dict[tuple[str, ...], argparse._ArgumentGroup] = {(): parser.add_argument_group("main settings")}
    for option in OPTIONS.values():
        section = option.path[:-1]
        if section not in groups:
            groups[section] = parser.add_argument_group(".".join(section))
        groups[section].add_argument(
            option.flag,
            dest=option.name,
            metavar=option.unit,
            action="append" if option.is_list else "store",
            default=argparse.SUPPRESS,
            help=_help(option).replace("%", "%%"),
        )


def _help(option: Option) -> str:
    described = " ".join((option.field.description or "").split())
    default = options.value_of(options.DEFAULTS, option)
    if default is None or default == ():
        return f"{described} ({option.env})"
    shown = default.human_readable() if isinstance(default, ByteSize) else default
    return f"{described} ({option.env}; default: {shown})"


if __name__ == "__main__":
    sys.exit(main())
