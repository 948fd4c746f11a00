"""/metrics over HTTP or HTTPS, in a thread of its own, so that a slow scraper is nobody's problem but its own.

Uses the exposition of prometheus-client. Who may read is the guard's to say (kvstore.node.auth): labels name tenants.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from kvstore.errors import Misconfigured

SOCKET_TIMEOUT_S: Final = 10.0
# A thread each. A newer one takes the place of the oldest if that has had SOCKET_TIMEOUT_S, else it is hung up on.
CONNECTIONS_MAX: Final = 16

# Of the next connection: what it is encrypted with; None: not.
Context = Callable[[], ssl.SSLContext | None]

# Raises an exception with a `known` attribute (kvstore.node.auth.Denied) where the caller may not read.
Authorize = Callable[[Mapping[str, str], Iterable[str]], object]


class _Handler(WSGIRequestHandler):
    timeout = SOCKET_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Scrapes are not news."""

    def get_environ(self) -> dict[str, Any]:
        environ = super().get_environ()
        certificate: Any = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        subject = certificate.get("subject", ()) if certificate else ()
        others = certificate.get("subjectAltName", ()) if certificate else ()
        common = [row[0][1] for row in subject if row[0][0] == "commonName"]
        environ["kvstore.certificate_names"] = [*(name for _, name in others), *common]
        return environ


class MetricsServer:
    """From `start` to `stop`."""

    def __init__(self, collector: Collector, authorize: Authorize, denied: type[Exception]) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        self._authorize = authorize
        self._denied = denied
        self._app: WSGIApplication = make_wsgi_app(registry)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, host: str, port: int, context: Context) -> int:
        """Binds and serves; returns the port. Raises Misconfigured naming the address."""
        family = _Server6 if ":" in host else _Server
        try:
            server = make_server(host, port, self._guarded, server_class=family, handler_class=_Handler)
        except OSError as error:
            raise Misconfigured(f"metrics.address = '{host}:{port}': {error.strerror}") from error
        server.context = context
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="kvstore-metrics", daemon=True)
        self._thread.start()
        return int(server.server_port)

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def _guarded(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = {"authorization": environ["HTTP_AUTHORIZATION"]} if "HTTP_AUTHORIZATION" in environ else {}
        try:
            self._authorize(headers, environ["kvstore.certificate_names"])
        except self._denied as denied:
            known = bool(getattr(denied, "known", False))
            challenge = [] if known else [("WWW-Authenticate", "Bearer")]
            start_response(
                "403 Forbidden" if known else "401 Unauthorized", [("Content-Type", "text/plain"), *challenge]
            )
            return [f"{denied}\n".encode()]
        if environ["PATH_INFO"] not in {"/metrics", "/"}:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics is what there is\n"]
        return self._app(environ, start_response)


class _Server(ThreadingWSGIServer):
    daemon_threads = True
    context: Context

    def __init__(self, *arguments: Any) -> None:
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}  # since when
        super().__init__(*arguments)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - the base class's
        """Whether there is room for it. Runs on the thread that accepts."""
        now = time.monotonic()
        with self._lock:
            if len(self._open) >= CONNECTIONS_MAX:
                oldest = min(self._open, key=lambda one: self._open[one])
                if now - self._open[oldest] < SOCKET_TIMEOUT_S:
                    return False
                with contextlib.suppress(OSError):
                    # Its thread ends by that. The plain socket's: that of TLS would first go over to plain text.
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)
                del self._open[oldest]
            self._open[request] = now
        return True

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        context = self.context()
        if context is not None:
            # Handshakes are made by the thread of the connection, so that a silent caller blocks nobody.
            connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up, or fails its handshake, costs its own connection and no line in the log."""


class _Server6(_Server):
    address_family = socket.AF_INET6
