"""An API server for one StatefulSet and its namespace's Secrets, over TLS, with the real one's manners.

- No or another bearer token: 401. Another path: 404. A body of another type than the method takes: 415.
- `PUT …/scale` with an old resourceVersion, or with one of a Scale that has changed since: 409.
- A Secret's `stringData` becomes `data` in base64; in a merge patch (RFC 7386) null takes a key out.
- The pods follow: `status.replicas` is what `ready` says.

`faults` are met before anything else: a status for each of the next requests, "slow" for no answer at all,
"conflict" for somebody else who writes first.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import trio
import trustme

NAMESPACE, NAME, TOKEN = "gateways", "protego-gpn", "the-service-account-s-token"
SCALE = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{NAME}/scale"
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"


class ApiServer:
    def __init__(self) -> None:
        self.replicas = 0
        self.ready = 0
        self.version = 100
        self.secrets: dict[str, dict[str, str]] = {}
        self.faults: list[int | str] = []
        self.asked: list[str] = []
        self.token = TOKEN
        self.port = 0
        self.ca = b""

    def settings(self, directory: Path) -> dict[str, str]:
        """For a provisioner outside of the cluster."""
        (directory / "token").write_text(TOKEN + "\n")
        (directory / "ca.crt").write_bytes(self.ca)
        return {
            "server": f"https://127.0.0.1:{self.port}",
            "namespace": NAMESPACE,
            "statefulset": NAME,
            "token_file": str(directory / "token"),
            "ca_file": str(directory / "ca.crt"),
        }

    def scaled(self, replicas: int) -> None:
        """Somebody else does it."""
        self.replicas = replicas
        self.version += 1

    def kept(self, secret: str = f"{NAME}-join") -> dict[str, str]:
        return {key: base64.b64decode(value).decode() for key, value in self.secrets.get(secret, {}).items()}

    # ---- what is asked

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return self._status(401, "Unauthorized")
        wanted = "application/merge-patch+json" if method == "PATCH" else "application/json"
        if method != "GET" and headers.get("content-type") != wanted:
            return self._status(415, "the body of the request was in an unknown format")
        sent = json.loads(body) if body else {}
        if path == SCALE:
            return self._scale(method, sent)
        if path.startswith(SECRETS):
            return self._secret(method, path.removeprefix(SECRETS).lstrip("/"), sent)
        return self._status(404, f'"{path}" not found')

    def _scale(self, method: str, sent: Any) -> tuple[int, Any]:
        if method == "PUT":
            if sent["metadata"]["resourceVersion"] not in ("", str(self.version)):
                return self._status(409, f'Operation cannot be fulfilled on "{NAME}": it has been modified')
            self.scaled(sent["spec"].get("replicas", 0))
        elif method != "GET":
            return self._status(405, "the server does not allow this method")
        counts: dict[str, int] = {"replicas": self.replicas} if self.replicas else {}
        return 200, {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "resourceVersion": str(self.version)},
            "spec": counts,
            "status": {"replicas": min(self.ready, self.replicas), "selector": "app=protego"},
        }

    def _secret(self, method: str, name: str, sent: Any) -> tuple[int, Any]:
        created = method == "POST"
        name = sent["metadata"]["name"] if created else name
        if created and name in self.secrets:
            return self._status(409, f'secrets "{name}" already exists')
        if not created and name not in self.secrets:
            return self._status(404, f'secrets "{name}" not found')
        data = self.secrets.setdefault(name, {})
        for key, value in sent.get("data", {}).items():
            if value is None:
                data.pop(key, None)
            else:
                data[key] = value
        for key, value in sent.get("stringData", {}).items():
            data[key] = base64.b64encode(value.encode()).decode()
        return 201 if created else 200, {"kind": "Secret", "metadata": {"name": name}, "data": data}

    def _status(self, code: int, message: str) -> tuple[int, Any]:
        return code, {"kind": "Status", "status": "Failure", "message": message, "code": code}

    # ---- HTTP

    async def serve(self, stream: trio.abc.Stream) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                request, body = await self._request(connection, stream)
                if request is None:
                    return
                await self._reply(connection, stream, request, body)
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            await trio.aclose_forcefully(stream)

    async def _request(
        self, connection: h11.Connection, stream: trio.abc.Stream
    ) -> tuple[h11.Request | None, bytes]:
        request, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(1 << 16)))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return request, body
            else:
                return None, b""

    async def _reply(
        self, connection: h11.Connection, stream: trio.abc.Stream, request: h11.Request, body: bytes
    ) -> None:
        method, path = request.method.decode(), request.target.decode()
        self.asked.append(f"{method} {path}")
        fault = self.faults.pop(0) if self.faults else None
        if fault == "slow":
            await trio.sleep_forever()
        if fault == "conflict":
            self.scaled(self.replicas)
        headers = {name.decode().lower(): value.decode() for name, value in request.headers}
        if isinstance(fault, int):
            code, said = self._status(
                fault, "an error on the server has prevented the request from succeeding"
            )
        else:
            code, said = self.answer(method, path, headers, body)
        data = json.dumps(said).encode()
        head = h11.Response(
            status_code=code,
            headers=[("Content-Type", "application/json"), ("Content-Length", str(len(data)))],
        )
        for event in (head, h11.Data(data=data), h11.EndOfMessage()):
            await stream.send_all(connection.send(event) or b"")


@asynccontextmanager
async def api_server() -> AsyncIterator[ApiServer]:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = ApiServer()
    server.ca = authority.cert_pem.bytes()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        listener = listeners[0].transport_listener
        assert isinstance(listener, trio.SocketListener)
        server.port = listener.socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()
