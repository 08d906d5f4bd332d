"""Faults that a test orders from the server: answers that refuse, and connections cut in the middle."""

import re
import threading
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
    path: str
    skip: int  # matching requests that still pass as usual
    times: int  # matching requests that it still strikes
    what: Answer | Cut
    struck: bool = False


class Faults:
    """Ordered faults, in the order in which they were ordered; once used up, the server goes on as usual.

    `method` is a regular expression for the whole method, `path` one that is searched for in the quoted path with its
    query. Both ports are covered: large files travel through /objects/ on the second one.
    """

    def __init__(self):
        self._ordered: list[Fault] = []
        self._lock = threading.Lock()

    def answer(
        self,
        status: int,
        method: str,
        path: str,
        *,
        code: str | None = None,
        message: str | None = None,
        headers: Mapping[str, str] | None = None,
        skip: int = 0,
        times: int = 1,
    ) -> None:
        """Refuse the next `times` matching requests, after `skip` others, without doing what they ask."""
        error = HubError(status, code, message or HTTPStatus(status).phrase, headers)
        self._ordered.append(Fault(method, path, skip, times, error.answer))

    def cut_request(self, method: str, path: str, *, skip: int = 0, times: int = 1) -> None:
        """Close the connection when half of the request's body has arrived, and do nothing of what it asks."""
        self._ordered.append(Fault(method, path, skip, times, Cut.REQUEST))

    def cut_answer(self, method: str, path: str, *, skip: int = 0, times: int = 1) -> None:
        """Do what the request asks, and close the connection when half of the answer has left."""
        self._ordered.append(Fault(method, path, skip, times, Cut.ANSWER))

    def strike(self, method: str, path: str) -> Answer | Cut | None:
        """What happens to this request: the first ordered fault that matches it and has no request left to skip."""
        with self._lock:
            for fault in self._ordered:
                if not (re.fullmatch(fault.method, method) and re.search(fault.path, path)):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.struck = True
                fault.times -= 1
                if not fault.times:
                    self._ordered.remove(fault)
                return fault.what
        return None

    def withdraw(self) -> list[Fault]:
        """Withdraw all faults, and return those that struck no request: orders that matched nothing."""
        with self._lock:
            missed = [fault for fault in self._ordered if not fault.struck]
            self._ordered.clear()
        return missed
