"""`protego local`, and the two commands by which it starts its endpoints' processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protego_cli.cli.options import AsJson, complete_policy

_OF_ELASTIC = ("trace", "policy", "interval", "capacity")

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="The plan that `protego local` wrote.")]


def local(
    ctx: typer.Context,
    as_json: AsJson = False,
    headless: Annotated[
        bool, typer.Option("--headless", help="Plain lines instead of the live view.")
    ] = False,
    duration: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds of traffic [default: 20; with --elastic, the whole trace]."),
    ] = None,
    tenants: Annotated[int, typer.Option(metavar="N", help="Tenants, each with one tunnel.")] = 8,
    gpns: Annotated[int, typer.Option(metavar="N", help="Gateway Processing Nodes.")] = 3,
    migrations: Annotated[int, typer.Option(metavar="N", help="Migrations during the traffic.")] = 100,
    pps: Annotated[int, typer.Option(metavar="P", help="Packets per second, tunnel and direction.")] = 200,
    elastic: Annotated[
        bool,
        typer.Option(
            "--elastic", help="Replay a trace, 60 times as fast, while GPNs come and go by themselves."
        ),
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --elastic: the trace; one is made up when left out."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="POLICY", help="With --elastic: the packing policy.", autocompletion=complete_policy
        ),
    ] = "protego",
    interval: Annotated[
        str, typer.Option(metavar="TIME", help="With --elastic: between consolidations, in the trace's time.")
    ] = "3m",
    capacity: Annotated[
        float, typer.Option(metavar="MBITS", help="With --elastic: Mbit/s of the trace that fill a GPN.")
    ] = 1000.0,
) -> None:
    """Run a whole cluster on this machine; count every packet.

    Every role, peers and tenants run as processes on loopback addresses, without root; tunnels migrate while
    numbered packets run through them. Ends with a receipt, and with exit code 1 if one packet was lost,
    misdelivered or corrupted. With --elastic, the elastic controller moves tunnels, launches and retires
    GPNs, and the mean number of GPNs is shown beside the simulator's for the same trace and policy."""
    from protego_cli.errors import UsageError

    for name in ("tenants", "gpns", "migrations", "pps") if elastic else _OF_ELASTIC:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name} goes {'without' if elastic else 'with'} --elastic only")
    if elastic:
        from protego_cli.cli.times import seconds
        from protego_cli.lab.main import run_local_elastic

        code = run_local_elastic(
            json=as_json,
            headless=headless,
            trace=trace,
            policy=policy,
            interval=seconds(interval, "--interval", 1, 86400),
            capacity=capacity,
            duration=duration,
        )
        raise typer.Exit(code)
    from protego_cli.lab.main import run_local

    code = run_local(
        json=as_json,
        headless=headless,
        duration=20.0 if duration is None else duration,
        tenants=tenants,
        gpns=gpns,
        migrations=migrations,
        pps=pps,
    )
    raise typer.Exit(code)


def lab_peers(plan: PlanFile) -> None:
    """The on-premises peers of a local run."""
    from protego_cli.lab.peers import main

    main(plan)


def lab_tenants(plan: PlanFile) -> None:
    """The tenants' endpoints of a local run."""
    from protego_cli.lab.tenants import main

    main(plan)
