"""Requests and answers between the socket and the Hub's rules: parsed once, independent of any connection."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    target: str  # as on the request line: quoted path and query
    headers: Mapping[str, str]
    body: bytes

    @property
    def segments(self) -> list[str]:
        """The path's parts, each unquoted on its own: a quoted slash, as in refs%2Fpr%2F1, stays inside its part."""
        return [unquote(part) for part in urlsplit(self.target).path.split("/")[1:]]

    @property
    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def asks(self, flag: str) -> bool:
        """Whether the query switches the flag on, in one of the ways in which clients write booleans."""
        return parse_qs(urlsplit(self.target).query).get(flag, [""])[0].lower() in ("1", "true")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self, with_body: bool) -> bytes:
        """The bytes on the wire. The answer to HEAD has the headers of GET, its length too, and no body."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (self.body if with_body else b"")


class HubError(Exception):
    """The Hub refuses: an HTTP status, a message, the Hub's own error code, headers that go with it."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None):
        super().__init__(message)
        named = {"X-Error-Code": code, "X-Error-Message": message}
        self.answer = json_answer({"error": message}, status, named | dict(headers or {}))


def json_answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})


def content_answer(request: Request, content: bytes, headers: Mapping[str, str]) -> Answer:
    """The whole content (200), or the range that the request asks for (206)."""
    if "Range" not in request.headers:
        return Answer(200, content, headers)
    first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers["Range"]).groups()
    start, stop = int(first), min(int(last) + 1, len(content)) if last else len(content)
    span = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
    return Answer(206, content[start:stop], {**headers, **span})
