"""Protego: a cloud-scale, multitenant IPsec gateway.

Layers, each importing only from those before it (a test enforces it):

    errors, config, counters, hookspecs -> wire -> crypto -> ike | esp -> net -> control
    -> plugins -> sim -> roles -> lab -> cli

`docs/architecture.md` tells how they work together.
"""

__version__ = "0.1.0"
