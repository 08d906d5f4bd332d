"""Faults that a test orders from the server: answers that refuse, and connections cut in the middle."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus

from hub.messages import Answer, HubError


class Cut(Enum):
    """Where a connection breaks: the two leave different states behind, and the client cannot tell them apart."""

    REQUEST = auto()  # half of the request's body has arrived; the server has done nothing
    ANSWER = auto()  # the server has done what was asked; half of its answer has left


@dataclass
class Fault:
    method: str
    path: str  # a part of it
    times: int  # matching requests that it still strikes
    what: Answer | Cut
    struck: bool = False


class Faults:
    """Strike in the order in which they were ordered; once used up, the server goes on as usual."""

    def __init__(self):
        self._ordered: list[Fault] = []

    def answer(
        self, status: int, method: str, path: str, *, times: int = 1, headers: Mapping[str, str] | None = None
    ) -> None:
        """Refuse the next `times` matching requests without doing what they ask."""
        error = HubError(status, HTTPStatus(status).phrase, headers=headers)
        self._ordered.append(Fault(method, path, times, error.answer))

    def cut_request(self, method: str, path: str, *, times: int = 1) -> None:
        """Close the connection when half of the request's body has arrived, and do nothing of what it asks."""
        self._ordered.append(Fault(method, path, times, Cut.REQUEST))

    def cut_answer(self, method: str, path: str, *, times: int = 1) -> None:
        """Do what the request asks, and close the connection when half of the answer has left."""
        self._ordered.append(Fault(method, path, times, Cut.ANSWER))

    def strike(self, method: str, path: str) -> Answer | Cut | None:
        """What happens to this request: the first ordered fault that matches it."""
        for fault in self._ordered:
            if fault.times and fault.method == method and fault.path in path:
                fault.struck = True
                fault.times -= 1
                return fault.what
        return None

    def missed(self) -> list[Fault]:
        """Those that struck no request: orders that matched nothing."""
        return [fault for fault in self._ordered if not fault.struck]
