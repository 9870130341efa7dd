"""The plugin manager: the only place that loads plugins and calls hooks, once, before a role starts.

1. Load the built-ins, what distributions registered as entry points, and the cluster file's paths.
2. Register each under its name; a name used twice, or an implementation of a hook that does not exist,
   is an error that names the plugin and where it comes from.
3. Call every implementation of every hook, check what it hands out, and keep it by name.

All that goes wrong is a PluginError, and the gateway does not start: a policy hook fails closed.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import pluggy

from protego_cli import hookspecs
from protego_cli.config.model import AUTO, PluginsConfig
from protego_cli.control.packing.placement import Packer
from protego_cli.crypto.algorithms import Algorithm, Registry
from protego_cli.errors import PluginError
from protego_cli.plugins.discovery import Blame, Found, built_in, from_paths, installed

if TYPE_CHECKING:
    from protego_cli.control.pools.provision import ProvisionerKind
    from protego_cli.control.state.store import StateStore
    from protego_cli.net.steering import SteeringBackend

BUILT_IN_MODULES = ("crypto_suites", "packing_policies", "provisioners", "state_stores", "steering_backends")

_HOOK_PREFIX = "protego_"
_KEYWORD = re.compile(r"[a-z0-9_]+")
"""An algorithm's keyword: proposals are split at "-"."""


@dataclass(frozen=True)
class PluginInfo:
    """One line of `protego plugins`."""

    name: str
    version: str | None
    source: str  # "built-in", "entry point of DISTRIBUTION", or a path
    hooks: tuple[str, ...]


class Offer(NamedTuple):
    """One object that a plugin handed out."""

    plugin: str
    item: Any  # checked by the hook's own check


class Provisioning(NamedTuple):
    """A kind of provisioner, and the plugin it comes from."""

    kind: ProvisionerKind
    plugin: str


class Plugins:
    """What all loaded plugins provide; built by `load_plugins`."""

    def __init__(
        self,
        listing: Sequence[PluginInfo],
        registry: Registry,
        packing_policies: dict[str, Packer],
        steering_backends: dict[str, SteeringBackend],
        state_stores: dict[str, StateStore],
        provisioners: dict[str, Provisioning],
    ) -> None:
        self._listing = tuple(listing)
        self._registry = registry
        self._packing_policies = packing_policies
        self._steering_backends = steering_backends
        self._state_stores = state_stores
        self._provisioners = provisioners

    def listing(self) -> list[PluginInfo]:
        """The plugins in the order they were loaded."""
        return list(self._listing)

    def registry(self) -> Registry:
        return self._registry

    def packing_policies(self) -> dict[str, Packer]:
        return dict(self._packing_policies)

    def steering_backends(self) -> dict[str, SteeringBackend]:
        return dict(self._steering_backends)

    def state_stores(self) -> dict[str, StateStore]:
        return dict(self._state_stores)

    def provisioners(self) -> dict[str, Provisioning]:
        return dict(self._provisioners)


def load_plugins(config: PluginsConfig | None = None) -> Plugins:
    """Load everything; raises PluginError, which names the plugin and the cause."""
    paths = config.paths if config is not None else ()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    plugins: dict[str, Found] = {}
    for found in chain(built_in(BUILT_IN_MODULES), installed(), from_paths(paths)):
        _register(manager, plugins, found)
    policies = _offers(manager, plugins, "protego_packing_policies", _provides("place", "plan"))
    backends = _offers(manager, plugins, "protego_steering_backends", _backend_fault)
    stores = _offers(manager, plugins, "protego_state_stores", _provides("open"))
    provisioners = _offers(manager, plugins, "protego_provisioners", _provisioner_fault)
    return Plugins(
        [
            PluginInfo(each.name, each.version, each.source, _hooks(manager, each))
            for each in plugins.values()
        ],
        Registry(_offers(manager, plugins, "protego_crypto_suites", _algorithm_fault)),
        {offer.item.name: Packer(offer.item, offer.plugin) for offer in _unique("packing policy", policies)},
        {offer.item.name: offer.item for offer in _unique("steering backend", backends)},
        {offer.item.name: offer.item for offer in _unique("state store", stores)},
        {
            offer.item.name: Provisioning(offer.item, offer.plugin)
            for offer in _unique("provisioner", provisioners)
        },
    )


# ---- registering


def _register(manager: pluggy.PluginManager, plugins: dict[str, Found], found: Found) -> None:
    if (other := plugins.get(found.name)) is not None:
        raise PluginError(
            f"two plugins have the name {found.name!r}: one is {other.source}, the other {found.source}; "
            "rename or remove one of them"
        )
    if (same := manager.get_name(found.plugin)) is not None:
        raise PluginError(
            f"plugins {same!r} ({plugins[same].source}) and {found.name!r} ({found.source}) are one object; "
            "remove one of them"
        )
    try:
        manager.register(found.plugin, found.name)
    except pluggy.PluginValidationError as error:
        cause = " ".join(str(error).split())
        raise PluginError(f"plugin {found.name!r} ({found.source}) does not fit its hook: {cause}") from error
    plugins[found.name] = found
    _check_hooks(manager, found)


def _check_hooks(manager: pluggy.PluginManager, found: Found) -> None:
    """Whether the plugin implements hooks that exist, at least one, and forgot no decorator."""
    known = _specified(manager)
    callers = manager.get_hookcallers(found.plugin) or []
    for caller in callers:
        for hook in (each for each in caller.get_hookimpls() if each.plugin is found.plugin):
            if caller.name not in known and not hook.optionalhook:
                raise _unknown_hook(found, caller.name, known)
            if hook.wrapper or hook.hookwrapper:
                raise PluginError(
                    f"plugin {found.name!r} ({found.source}) implements {caller.name} as a wrapper; "
                    "hooks of Protego hand out objects and can't be wrapped"
                )
    for name, value in inspect.getmembers_static(found.plugin):
        if name.startswith(_HOOK_PREFIX) and inspect.isfunction(value):
            if manager.parse_hookimpl_opts(found.plugin, name) is not None:
                continue
            if name not in known:
                raise _unknown_hook(found, name, known)
            raise PluginError(
                f"plugin {found.name!r} ({found.source}) defines {name} without @hookimpl "
                "(from protego_cli.hookspecs import hookimpl)"
            )
    if not _hooks(manager, found):
        raise PluginError(
            f"plugin {found.name!r} ({found.source}) implements no hook; known are {', '.join(sorted(known))}"
        )


def _specified(manager: pluggy.PluginManager) -> set[str]:
    callers = (getattr(manager.hook, name) for name in vars(manager.hook) if not name.startswith("_"))
    return {caller.name for caller in callers if caller.has_spec()}


def _unknown_hook(found: Found, name: str, known: Collection[str]) -> PluginError:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
    return PluginError(f"plugin {found.name!r} ({found.source}) implements the unknown hook {name}; {hint}")


def _hooks(manager: pluggy.PluginManager, found: Found) -> tuple[str, ...]:
    callers = manager.get_hookcallers(found.plugin) or []
    return tuple(sorted(caller.name for caller in callers if caller.has_spec()))


# ---- what the hooks hand out


def _offers(
    manager: pluggy.PluginManager,
    plugins: dict[str, Found],
    hook: str,
    fault: Callable[[object], str | None],
) -> list[Offer]:
    """Everything all plugins hand out for the hook, in the order the plugins were loaded.

    Implementations are called one by one, not through pluggy's own call, so that each object and each
    error can be laid to its plugin.
    """
    offers: list[Offer] = []
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    order = list(plugins)
    for implementation in sorted(caller.get_hookimpls(), key=lambda each: order.index(each.plugin_name)):
        name, source = implementation.plugin_name, plugins[implementation.plugin_name].source
        with Blame(name, source, f"calling {hook}"):
            handed = implementation.function()
            items = list(handed) if isinstance(handed, Iterable) and not isinstance(handed, str) else None
        if items is None:
            raise PluginError(
                f"plugin {name!r} ({source}): {hook} must return a sequence, not {type(handed).__name__}"
            )
        for item in items:
            with Blame(name, source, f"checking what {hook} returned"):
                wrong = fault(item)
            if wrong is not None:
                raise PluginError(
                    f"plugin {name!r} ({source}): {hook} returned {_describe(item)}, which {wrong}"
                )
        offers += [Offer(name, item) for item in items]
    return offers


def _describe(item: object) -> str:
    return (
        f"the class {item.__name__}" if isinstance(item, type) else f"an object of type {type(item).__name__}"
    )


def _algorithm_fault(item: object) -> str | None:
    if not isinstance(item, Algorithm):
        return "is no algorithm of protego_cli.crypto.algorithms"
    if not isinstance(item.keyword, str) or not _KEYWORD.fullmatch(item.keyword):
        return f"has the keyword {item.keyword!r}; a keyword has only a-z, 0-9 and _"
    return None


def _provides(*methods: str) -> Callable[[object], str | None]:
    """A check for an object with a name and these methods; the protocols say what the methods do."""

    def fault(item: object) -> str | None:
        if isinstance(item, type):
            return "is not an instance; call it"
        name = getattr(item, "name", None)
        if not isinstance(name, str) or not name:
            return "has no `name` (a text that is not empty)"
        missing = [method for method in methods if not callable(getattr(item, method, None))]
        return f"lacks {', '.join(f'{method}()' for method in missing)}" if missing else None

    return fault


def _backend_fault(item: object) -> str | None:
    fault = _provides("unavailable", "ingress", "egress")(item)
    if fault is None and getattr(item, "name", None) == AUTO:
        return f'has the name "{AUTO}", by which a cluster file asks for the best backend'
    return fault


def _provisioner_fault(item: object) -> str | None:
    fault = _provides("check", "open")(item)
    if fault is None and not all(
        isinstance(getattr(item, name, None), bool) for name in ("ordered", "keeps")
    ):
        return "does not say by `ordered` and `keeps`, true or false, what it is"
    return fault


def _unique(what: str, offers: Iterable[Offer]) -> Iterable[Offer]:
    named: dict[str, Offer] = {}
    for offer in offers:
        if (other := named.get(offer.item.name)) is not None:
            raise PluginError(
                f"plugins {other.plugin!r} and {offer.plugin!r} both provide the {what} {offer.item.name!r}; "
                "remove one of them"
            )
        named[offer.item.name] = offer
    return named.values()
