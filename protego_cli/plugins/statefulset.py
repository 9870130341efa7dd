"""The provisioner `kubernetes`: a StatefulSet is scaled, so that NODE-1 to NODE-n of the pool run as its
pods.

1. The token of a node that is launched goes into a Secret, under the node's name: the pods mount it, and run
   `protego up --role gpn --join @…/NODE` (docs/operations.md).
2. `launch` raises the number of replicas to the node's number if it is below; `retire` lowers it by one if
   the node is the last one, and takes its token out of the Secret. Both read the scale subresource, and write
   it with the resourceVersion that they have read: a conflict (409) means that somebody else was at it, and
   is tried anew.
3. Pods have ordinals from `spec.ordinals.start` on; with start 1 they bear the names of the pool's nodes.

The API server is found and proven as for any pod: address and port from the environment, the CA and a token
from the service account's directory, or as the settings say. The token is read anew each time, since it is
renewed."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import trio

from protego_cli.config.model import Node, Setting
from protego_cli.control.pools.provision import Place, ProvisionFault
from protego_cli.errors import EnvironmentFault

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT: Final = 10.0
TRIES: Final = 5  # of a write that meets conflicts
PAUSE: Final = 0.1
MAX_ANSWER: Final = 4 << 20
SHOWN: Final = 300
_PATCH: Final = "application/merge-patch+json"


class StatefulSet:
    def __init__(self, place: Place) -> None:
        try:
            import httpx
        except ImportError:
            raise EnvironmentFault(
                "the provisioner kubernetes needs httpx: pip install 'protego-ipsec[kubernetes]'"
            ) from None
        settings = place.settings
        self._httpx = httpx
        self._pool = place.pool
        self._name = _text(settings, "statefulset", place.pool.name)
        self._secret = _text(settings, "secret", f"{self._name}-join")
        self._token = Path(_text(settings, "token_file", str(ACCOUNT / "token")))
        namespace = settings.get("namespace")
        self._namespace = str(namespace) if namespace else _read(ACCOUNT / "namespace", "namespace")
        ca = Path(_text(settings, "ca_file", str(ACCOUNT / "ca.crt")))
        self._server = _text(settings, "server", _in_cluster())
        if not self._server.startswith(("https:", "http:")):
            raise EnvironmentFault(
                f"pool {place.pool.name}: this is no pod, so say where the API server is: "
                'provisioner = { kind = "kubernetes", server = "https://…:6443", … }'
            )
        try:
            verify: ssl.SSLContext | bool = (
                ssl.create_default_context(cafile=str(ca)) if self._server.startswith("https:") else True
            )
        except OSError as error:
            raise EnvironmentFault(
                f"{ca}: the API server's CA cannot be read: {error.strerror or error}; say `ca_file`"
            ) from error
        self._client = httpx.AsyncClient(
            base_url=self._server, verify=verify, timeout=TIMEOUT, trust_env=False
        )

    async def run(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self._client.aclose()

    async def launch(self, node: Node, token: str) -> None:
        number = self._number(node)
        await self._keep_token(node, token)

        def raised(replicas: int) -> int:
            return max(replicas, number)

        await self._scale(raised)

    async def retire(self, node: Node) -> None:
        number = self._number(node)

        def lowered(replicas: int) -> int:
            if replicas > number:
                raise ProvisionFault(
                    f"{node.name} is not the last of StatefulSet {self._name}, which has {replicas} "
                    "replicas: only the last one can go"
                )
            return min(replicas, number - 1)

        await self._scale(lowered)
        await self._keep_token(node, None)

    async def nodes(self) -> Mapping[str, str]:
        scale = await self._call("GET", self._path("scale"))
        wanted, there = _count(scale, "spec"), _count(scale, "status")
        return {
            node.name: "a pod of the StatefulSet" if number <= there else "its pod is being made"
            for number, node in enumerate(self._pool.nodes(min(wanted, self._pool.room)), start=1)
        }

    def _number(self, node: Node) -> int:
        return self._pool.number(node.name) or 0

    # ---- the API

    async def _scale(self, change: Callable[[int], int]) -> None:
        for attempt in range(TRIES):
            scale = await self._call("GET", self._path("scale"))
            replicas = _count(scale, "spec")
            wanted = change(replicas)
            if wanted == replicas:
                return
            body = {
                "apiVersion": "autoscaling/v1",
                "kind": "Scale",
                "metadata": {
                    "name": self._name,
                    "namespace": self._namespace,
                    "resourceVersion": scale.get("metadata", {}).get("resourceVersion", ""),
                },
                "spec": {"replicas": wanted},
            }
            if await self._call("PUT", self._path("scale"), body, conflict=True) is not None:
                return
            await trio.sleep(PAUSE * 2**attempt)
        raise ProvisionFault(f"StatefulSet {self._name}: others keep changing its scale; tried {TRIES} times")

    async def _keep_token(self, node: Node, token: str | None) -> None:
        """Put a node's token into the Secret, or take it out."""
        body = {"stringData": {node.name: token}} if token is not None else {"data": {node.name: None}}
        path = f"/api/v1/namespaces/{self._namespace}/secrets"
        if (
            await self._call("PATCH", f"{path}/{self._secret}", body, missing=True) is not None
            or token is None
        ):
            return
        made = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self._secret, "namespace": self._namespace},
            "type": "Opaque",
            **body,
        }
        if await self._call("POST", path, made, conflict=True) is None:  # somebody was faster
            await self._call("PATCH", f"{path}/{self._secret}", body)

    def _path(self, subresource: str) -> str:
        return f"/apis/apps/v1/namespaces/{self._namespace}/statefulsets/{self._name}/{subresource}"

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        conflict: bool = False,
        missing: bool = False,
    ) -> Any:
        """The answer; None for a conflict, or a thing that is missing, where the caller knows what to do.
        Raises ProvisionFault, without what was sent: it may hold a token.
        """
        httpx = self._httpx
        headers = {
            "Authorization": f"Bearer {_read(self._token, 'token_file')}",
            "Accept": "application/json",
            "Content-Type": _PATCH if method == "PATCH" else "application/json",
        }
        try:
            async with self._client.stream(method, path, headers=headers, json=body) as answer:
                said = await _bounded(answer)
        except httpx.TimeoutException:
            raise ProvisionFault(f"{method} {path}: no answer from {self._server} in {TIMEOUT:g} s") from None
        except httpx.HTTPError as error:
            raise ProvisionFault(f"{method} {path}: {self._server} cannot be reached: {error}") from None
        if (answer.status_code == 409 and conflict) or (answer.status_code == 404 and missing):
            return None
        try:
            found = json.loads(said)
        except ValueError:
            found = None
        if answer.is_success:
            if found is None:
                raise ProvisionFault(f"{method} {path}: the answer is no JSON")
            return found
        reason = found.get("message", "") if isinstance(found, dict) else answer.reason_phrase
        raise ProvisionFault(
            f"{method} {path}: {answer.status_code} {str(reason)[:SHOWN]}{_hint(answer.status_code)}"
        )


async def _bounded(answer: Any) -> bytes:
    """The body of an answer. Raises ProvisionFault for one that is too long, of which no more is kept."""
    body, length = bytearray(), 0
    async for chunk in answer.aiter_bytes():
        length += len(chunk)
        if length <= MAX_ANSWER:
            body += chunk
    if length > MAX_ANSWER:
        raise ProvisionFault(f"the API server's answer has more than {MAX_ANSWER} bytes")
    return bytes(body)


def _hint(status: int) -> str:
    if status == 401:
        return "; the token was not accepted: is `token_file` the right one?"
    if status == 403:
        return "; its service account needs get and update on statefulsets/scale, and secrets"
    return "; does it exist?" if status == 404 else ""


def _count(scale: Any, part: str) -> int:
    """The replicas in a Scale; none are left out of the JSON when they are zero."""
    found = scale.get(part, {}).get("replicas", 0) if isinstance(scale, dict) else None
    if not isinstance(found, int):
        raise ProvisionFault("the API server's answer is no Scale")
    return found


def _text(settings: Mapping[str, Setting], key: str, default: str) -> str:
    return str(settings.get(key, default))


def _in_cluster() -> str:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return ""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be read: {error.strerror}; outside of a pod, say `{setting}`"
        ) from None
