"""The plugin manager, and the built-ins: ordinary plugins that ship with Protego (docs/plugins.md)."""
