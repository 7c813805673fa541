"""`colm serve`: a team behind OpenAI's API, and a page that shows who wrote what."""

import os
from contextlib import ExitStack

from colm_jax.cli.flags import Flags, Parser, given, setting_flags, team_flags
from colm_jax.cli.teams import load_team
from colm_jax.errors import UserError
from colm_jax.settings.serving import ServingSettings

DESCRIPTION = (
    "Serve a team: OpenAI's completions and chat at /v1, and at / a page to talk to it, where each word shows who "
    "wrote it. It prints one line when it can answer. When it is stopped (SIGTERM, Ctrl-C), it finishes what it has "
    "accepted."
)
EXAMPLE = "colm serve --base RUN/team --port 8000"
SETTINGS = (
    *(
        "slots",
        "context",
        "max_waiting",
        "strategies",
        "deadline",
        "drain",
        "ping",
        "max_tokens",
        "max_choices",
        "max_body",
    ),
    "ignore_unknown_fields",
)


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    team_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; 0: any (default: 8000)")
    text = "environment variable that holds the key which clients must send (default: no key is asked for)"
    parser.add_argument("--api_key_env", metavar="NAME", help=text)
    parser.add_argument("--name", help="of the model in requests (default: the last part of --base)")
    text = "web page that may call the API from a browser, as https://HOST; repeatable (default: none)"
    parser.add_argument("--cors_origin", action="append", metavar="ORIGIN", help=text)
    setting_flags(parser, ServingSettings, *SETTINGS)


def check(flags: Flags) -> None:
    """Validate the settings."""
    _settings(flags)
    _key(flags)


def _settings(flags: Flags) -> ServingSettings:
    flags.bindings.bind("Serving", **given(vars(flags), ServingSettings))
    return flags.bindings.make(ServingSettings)


def _key(flags: Flags) -> str | None:
    """Return the key that clients must send."""
    if flags.api_key_env is None:
        return None
    key = os.environ.get(flags.api_key_env, "")
    if not key.strip():
        raise UserError(f"--api_key_env {flags.api_key_env}: this environment variable is not set; set it to the key")
    return key.strip()


def _is_local(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    return host.lower() in ("localhost", "::1") or host.startswith("127.")


def run(flags: Flags) -> None:
    """Serve until a signal; what can be checked is checked before weights are loaded."""
    settings, key = _settings(flags), _key(flags)
    try:
        from colm_jax.serving.server import listen, log_to_stderr, serve
        from colm_jax.serving.state import Server
    except ModuleNotFoundError as error:
        raise UserError(f"colm serve needs {error.name}: pip install 'colm-jax[serve]'") from None
    from colm_jax import console
    from colm_jax.checkpoints.outline import outline_team
    from colm_jax.settings.strategies import find_strategy

    outline = outline_team(flags.base, flags.expert, spans=flags.spans or "auto", gate=flags.gate)
    for strategy in settings.strategies or ():
        find_strategy(strategy, outline.experts, outline.gate_experts, outline.resident)
    where = listen(flags.host, flags.port)
    name = flags.name or flags.base.rstrip("/").rpartition("/")[2]
    log_to_stderr()
    hosts = ("127.0.0.1", "localhost", "::1", flags.host.lower()) if key is None and _is_local(flags.host) else ()
    server = Server(name, settings, key, flags.cors_origin or (), hosts)
    with ExitStack() as shown:

        def compiled(done: int, total: int) -> None:
            """Show a bar from the first batch of programs to the last."""
            if done == 0:
                bars.append(shown.enter_context(console.bar("compiling", total)))
            bars[0].to(done)
            if done == total:
                shown.close()

        bars: list[console.Bar] = []
        serve(server, where, lambda: load_team(flags), compiled)
