"""The `protego` command: its commands, and how every failure leaves the process.

Commands live in the modules named below and import what they need when they run, so that `--help` and
completion answer at once. An error that Protego raises on purpose becomes one sentence on stderr and the
exit code of its class (`errors.Exit`); anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from protego_cli import __version__
from protego_cli.cli import (
    check,
    doctor,
    events,
    explain,
    lab,
    node,
    operate,
    pool,
    pools,
    simulate,
    trace,
    tunnel,
)
from protego_cli.cli.counting import counted
from protego_cli.errors import INTERRUPTED, ConfigError, Exit, ProtegoError

EPILOG = (
    "Exit codes: 0 done; 1 tried and failed; 2 wrong arguments or cluster file; 3 no control node answered; "
    "4 no such tunnel or node; 5 this machine lacks something."
)

app = typer.Typer(
    name="protego",
    help="A cloud-scale, multitenant IPsec gateway whose tunnels migrate without losing a packet.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"protego {__version__}")
        raise typer.Exit


@app.callback()
def _protego(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


config = typer.Typer(help="Check the cluster file.", no_args_is_help=True)
pki = typer.Typer(help="The cluster's certificates.", no_args_is_help=True)
psk = typer.Typer(help="Pre-shared keys of tunnels.", no_args_is_help=True)

app.command()(node.up)
app.command()(operate.status)
app.command()(operate.migrate)
app.command()(operate.reload)
app.command()(pool.drain)
app.command()(pool.undrain)
app.command()(pool.rebalance)
app.command("pool")(pools.pool)
app.command("plan")(pools.plan)
app.command()(events.events)
app.command()(explain.explain)
app.command()(lab.local)
app.command()(simulate.simulate)
app.command()(doctor.doctor)
app.command()(check.plugins)
app.add_typer(tunnel.app, name="tunnel")
app.add_typer(trace.app, name="trace")
app.add_typer(config, name="config")
app.add_typer(pki, name="pki")
app.add_typer(psk, name="psk")
config.command("check")(check.config_check)
pki.command("init")(check.pki_init)
pki.command("token")(pools.pki_token)
psk.command("generate")(check.psk_generate)
app.command("lab-peers", hidden=True)(lab.lab_peers)
app.command("lab-tenants", hidden=True)(lab.lab_tenants)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (that of the process unless given); always ends in SystemExit."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="protego")
    except (ProtegoError, BaseExceptionGroup) as error:
        faults = list(_leaves(error))
        if any(isinstance(fault, KeyboardInterrupt) for fault in faults):
            sys.exit(INTERRUPTED)
        if all(isinstance(fault, SystemExit) for fault in faults):
            sys.exit(Exit.FAILED)  # what rich raises when nobody reads stdout any more
        if not all(isinstance(fault, ProtegoError) for fault in faults):
            raise
        sys.exit(_report([fault for fault in faults if isinstance(fault, ProtegoError)]))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside trio's groups, in order."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _report(faults: Sequence[ProtegoError]) -> int:
    """Tell each fault once; the first one decides the exit code."""
    for fault in {str(fault): fault for fault in faults}.values():
        if isinstance(fault, ConfigError):
            problems = counted(len(fault.problems), "problem")
            typer.echo(f"{fault}\nprotego: {problems} in {fault.path}", err=True)
        else:
            typer.echo(f"protego: {fault}", err=True)
    return int(faults[0].exit_code)
