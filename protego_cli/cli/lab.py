"""`protego local`, and the two commands by which it starts its endpoints' processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protego_cli.cli.options import AsJson

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="The plan that `protego local` wrote.")]


def local(
    as_json: AsJson = False,
    headless: Annotated[
        bool, typer.Option("--headless", help="Plain lines instead of the live view.")
    ] = False,
    duration: Annotated[float, typer.Option(metavar="S", help="Seconds of traffic.")] = 20.0,
    tenants: Annotated[int, typer.Option(metavar="N", help="Tenants, each with one tunnel.")] = 8,
    gpns: Annotated[int, typer.Option(metavar="N", help="Gateway Processing Nodes.")] = 3,
    migrations: Annotated[int, typer.Option(metavar="N", help="Migrations during the traffic.")] = 100,
    pps: Annotated[int, typer.Option(metavar="P", help="Packets per second, tunnel and direction.")] = 200,
) -> None:
    """Run a whole cluster on this machine; count every packet.

    Every role, peers and tenants run as processes on loopback addresses, without root; tunnels migrate while
    numbered packets run through them. Ends with a receipt, and with exit code 1 if one packet was lost,
    misdelivered or corrupted.
    """
    from protego_cli.lab.main import run_local

    code = run_local(
        json=as_json,
        headless=headless,
        duration=duration,
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
