"""`protego tunnel`: one tunnel, or those that are asked for."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from protego_cli.cli.options import AsJson, ClusterFile, complete_gpn, complete_tenant, complete_tunnel

app = typer.Typer(help="Look at tunnels, bring them up and down, rekey them.", no_args_is_help=True)

TunnelId = Annotated[
    str,
    typer.Argument(metavar="TUNNEL", help="The tunnel's id, TENANT/NAME.", autocompletion=complete_tunnel),
]


class State(StrEnum):
    UP = "up"
    CONNECTING = "connecting"
    DOWN = "down"


@app.command("list")
def list_(
    tenant: Annotated[
        str | None,
        typer.Option(
            metavar="TENANT",
            help="Only this tenant's.",
            show_default=False,
            autocompletion=complete_tenant,
        ),
    ] = None,
    state: Annotated[State | None, typer.Option(help="Only those in this state.", show_default=False)] = None,
    gpn: Annotated[
        str | None,
        typer.Option(
            metavar="NODE", help="Only those on this GPN.", show_default=False, autocompletion=complete_gpn
        ),
    ] = None,
    cluster: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """List the tunnels, as `status` does, or some of them."""
    from protego_cli.cli.asking import ask_once
    from protego_cli.cli.tunnel_view import print_tunnels
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.operator_messages import GetStatus, Status

    status = ask_once(load(find(cluster)), GetStatus(), Status)
    found = [
        tunnel
        for tunnel in status.tunnels
        if tenant in (None, tunnel.id.partition("/")[0])
        and state in (None, tunnel.state)
        and gpn in (None, tunnel.gpn)
    ]
    print_tunnels(found, len(status.tunnels), as_json=as_json)


@app.command()
def show(tunnel: TunnelId, cluster: ClusterFile = None, as_json: AsJson = False) -> None:
    """Show all that is known of a tunnel: its configuration, IKE_SAs, CHILD_SAs, last error."""
    from protego_cli.cli.asking import ask_once
    from protego_cli.cli.tunnel_view import print_detail
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.operator_messages import ShowTunnel, TunnelDetail

    loaded = load(find(cluster))
    print_detail(ask_once(loaded, ShowTunnel(tunnel), TunnelDetail), as_json=as_json)


@app.command()
def up(tunnel: TunnelId, cluster: ClusterFile = None, as_json: AsJson = False) -> None:
    """Bring a tunnel up now, and wait until it is; undoes `down`.

    Dials where the cluster file has the peer's address; a tunnel whose peer is "any" may come up from now on.
    """
    from protego_cli.cli.asking import ask_patiently
    from protego_cli.cli.tunnel_view import print_acted
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.operator_messages import Acted, UpTunnel
    from protego_cli.errors import Refused

    loaded = load(find(cluster))
    try:
        acted = ask_patiently(loaded, UpTunnel(tunnel), Acted, f"bringing {tunnel} up")
    except Refused as error:
        raise Refused(f"{tunnel} is not up: {error} (`protego explain {tunnel}`)") from error
    print_acted(acted, as_json=as_json)


@app.command()
def down(tunnel: TunnelId, cluster: ClusterFile = None, as_json: AsJson = False) -> None:
    """Take a tunnel down, and keep it down until `protego tunnel up`.

    Its IKE_SAs are deleted, its peer is refused when it dials, and a restart of the gateway changes nothing.
    """
    from protego_cli.cli.asking import ask_patiently
    from protego_cli.cli.tunnel_view import print_acted
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.operator_messages import Acted, DownTunnel

    loaded = load(find(cluster))
    acted = ask_patiently(loaded, DownTunnel(tunnel), Acted, f"taking {tunnel} down")
    print_acted(acted, as_json=as_json)


@app.command()
def rekey(
    tunnel: TunnelId,
    ike: Annotated[bool, typer.Option("--ike", help="The IKE_SA, not the CHILD_SA.")] = False,
    cluster: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Give a tunnel's CHILD_SA fresh keys where it is, while its traffic flows."""
    from protego_cli.cli.asking import ask_patiently
    from protego_cli.cli.tunnel_view import print_acted
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.operator_messages import Acted, RekeyTunnel

    loaded = load(find(cluster))
    acted = ask_patiently(loaded, RekeyTunnel(tunnel, ike), Acted, f"rekeying {tunnel}")
    print_acted(acted, as_json=as_json, verb="IKE_SA rekeyed" if ike else "rekeyed")
