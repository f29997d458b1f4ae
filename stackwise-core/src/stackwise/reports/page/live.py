"""The page of runs that train, served to this machine alone: read-only, and made anew when a log has grown."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import compare_digest, token_urlsafe
from threading import Lock
from typing import Any, Self

from stackwise.errors import StackwiseError, UserError
from stackwise.reports.page.render import render_page
from stackwise.reports.record import CONFIG, STATUS, read_runs
from stackwise.storage.logs import EVENTS, METRICS

LOOPBACK = "127.0.0.1"


class LivePage:
    """A server of one page. Its address holds a random token, so that other pages and users of the machine do not guess it.

    Args:
        runs: the run directories.
        port: 0 takes a free one.

    Raises:
        UserError: one is not a run directory, two are the same, or the port is taken.
    """

    def __init__(self, runs: Sequence[Path], port: int = 0) -> None:
        self._runs, self._lock, self._made = runs, Lock(), ("", "")
        read_runs(runs)
        self._token = token_urlsafe(16)
        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), self._handler())
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror or error}; leave it out to take a free one") from None
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        """Where a browser on this machine finds it."""
        return f"http://{LOOPBACK}:{self._server.server_address[1]}/{self._token}/"

    def serve(self) -> None:
        """Answer until `close`, or until interrupted."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    def page(self) -> tuple[str, str]:
        """A tag that changes with the runs, and the page."""
        with self._lock:
            tag = self._tag()
            if tag != self._made[0]:
                self._made = tag, render_page(read_runs(self._runs), live=True)
            return self._made

    def _tag(self) -> str:
        parts = [_stamp(run / name) for run in self._runs for name in (CONFIG, EVENTS, METRICS, STATUS)]
        return f'"{"-".join(parts)}"'

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        live = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not compare_digest(self.path.encode(), f"/{live._token}/".encode()):
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                try:
                    tag, page = live.page()
                except (StackwiseError, OSError, ValueError, KeyError) as error:  # a log that is being rewritten; the page asks again
                    self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
                    return
                unchanged = self.headers.get("If-None-Match") == tag
                self.send_response(HTTPStatus.NOT_MODIFIED if unchanged else HTTPStatus.OK)
                for name, value in {"ETag": tag, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}.items():
                    self.send_header(name, value)
                body = b"" if unchanged else page.encode()
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Says nothing: a request is not an event."""

        return Handler


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "none"
    return f"{status.st_mtime_ns}.{status.st_size}"
