"""Before a cluster runs: its file, certificates, keys and plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protego_cli.cli.counting import counted
from protego_cli.cli.options import AsJson, ClusterFile


def config_check(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="The cluster file [default: as for -c of other commands].",
            show_default=False,
        ),
    ] = None,
    cluster: ClusterFile = None,
) -> None:
    """Check a cluster file and the secrets it names.

    Shows every problem at once, each with its key and what was expected.
    """
    from protego_cli.cli.clusters import load_with_plugins
    from protego_cli.errors import UsageError

    if file is not None and cluster is not None:
        raise UsageError(f"say which file to check once: {file}, or -c {cluster}")
    named = file or cluster
    loaded, _ = load_with_plugins(named, secrets=True)
    counts = [
        counted(len(loaded.nodes), "node"),
        counted(len(loaded.tenants), "tenant"),
        counted(len(loaded.tunnels()), "tunnel"),
    ]
    typer.echo(f"{named or loaded.file}: valid, {', '.join(counts)}")


def pki_init(cluster: ClusterFile = None) -> None:
    """Make the cluster's CA, nodes' and operator's certificates, and the key of the GMN's state.

    What exists already is kept, so run it again after adding a node.
    """
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.pki import init

    loaded = load(find(cluster))
    made = [path.name for path in init(loaded)]
    new = "" if "ca.pem" in made else f"; new: {', '.join(made) or 'none'}"
    typer.echo(f"{loaded.pki}: certificates for {counted(len(loaded.nodes), 'node')} and the operator{new}")
    typer.echo("Each node needs ca.pem and its own NAME.pem and NAME.key; keep ca.key off all of them.")
    typer.echo(f"The GMN also needs {loaded.master_key}: without it its state cannot be read.")


def psk_generate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file to write; it must not exist.", show_default=False)
    ],
) -> None:
    """Write a new pre-shared key of 256 bits to a file that only you can read."""
    from protego_cli.config.secrets import generate_secret

    generate_secret(file)
    typer.echo(f"{file}: a new pre-shared key of 256 bits; give the peer the same")


def plugins(cluster: ClusterFile = None, as_json: AsJson = False) -> None:
    """List the loaded plugins and where each comes from."""
    from protego_cli.cli.render import print_plugins
    from protego_cli.config.load import find, load_plugins_section
    from protego_cli.errors import UsageError
    from protego_cli.plugins.manager import load_plugins

    try:
        config = load_plugins_section(find(cluster))
    except UsageError:
        if cluster is not None:
            raise
        config = None  # without a cluster file there are still the built-ins and the installed ones
    print_plugins(list(load_plugins(config).listing()), as_json=as_json)
