"""A server that does what it should, or goes wrong where and how it is told to."""

import json
import re
import socket
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote


@dataclass
class Fault:
    """What goes wrong with requests whose ``METHOD path`` matches.

    Attributes:
        match: regular expression, searched.
        kind: ``status`` (answer it), ``before`` (cut before the body is read), ``amid`` (in the middle of it), ``after`` (do
            the work and cut), ``stall`` (read and never answer), ``stall_after`` (do the work and never answer).
        status: with its ``headers``, for ``status``.
        times: how often; a negative number is for ever.
        skip: requests that are let through first.
    """

    match: str
    kind: str
    status: int = 500
    times: int = 1
    skip: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class Cut(Exception):
    """The connection is to be reset now."""


class Handler(BaseHTTPRequestHandler, ABC):
    """One request: log, faults, body; ``route`` answers with status, JSON or bytes, and headers."""

    fake: Any
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        """The log is a list."""

    def handle_one(self) -> None:
        """Answer, or do not, as the first fault that matches says."""
        line = f"{self.command} {unquote(self.path)}"
        fault = self._fault(line)
        self.body = b""
        try:
            if fault is not None and fault.kind == "before":
                raise Cut
            length = int(self.headers.get("Content-Length") or 0)
            if fault is not None and fault.kind == "amid":
                self.rfile.read(length // 2)
                raise Cut
            self.body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
            self.fake.bodies.append(self.body)
            if fault is not None and fault.kind == "status":
                status, answer, headers = fault.status, {"error": "a fault"}, fault.headers
            elif fault is not None and fault.kind == "stall":
                self._stall(line)
            else:
                with self.fake.lock:
                    status, answer, headers = self.route()
                if fault is not None and fault.kind == "after":
                    raise Cut
                if fault is not None and fault.kind == "stall_after":
                    self._stall(line)
        except Cut:
            self.fake.log.append(f"{line} -> cut")
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        self.fake.log.append(f"{line} -> {status}")
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)
        self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def _stall(self, line: str) -> None:
        self.fake.log.append(f"{line} -> stall")
        self.fake.released.wait(60)
        raise Cut

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().strip(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _fault(self, line: str) -> Fault | None:
        with self.fake.lock:
            for fault in self.fake.faults:
                if fault.times and re.search(fault.match, line):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    @abstractmethod
    def route(self) -> tuple[int, Any, dict[str, str]]:
        """Status, answer and headers."""
