"""A writable Hub on loopback, on two ports: the API and the storage of large files. Standard library only.

It serves the real clients: huggingface_hub, datasets and transformers. Everything lives in memory. What it does not
serve (spaces, buckets, Xet, tags, discussions without a pull request, merging, search) it refuses with status 501.
"""

import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from hub import endpoints, storage
from hub.faults import Cut, Faults
from hub.messages import Answer, HubError, Request, json_answer
from hub.repository import Repository


@dataclass(frozen=True)
class Account:
    """A user, who owns the namespace of the same name. `role` is "write" or "read", as for the real Hub's tokens."""

    name: str
    token: str
    role: str


class Logged(NamedTuple):
    """A request as it was answered; `status` is None where its own connection was cut before an answer."""

    method: str
    path: str  # quoted, with its query; a whole URL if it was meant for another host
    status: int | None


class HubServer:
    """Starts on construction, on two free ports of loopback, until `close` or the end of a `with` block.

    A token that no account has is refused. A request for another host, which arrives here where a client takes this
    server for its proxy, is logged and refused: no test leaves the machine.
    """

    def __init__(self):
        self.accounts: dict[str, Account] = {}  # by token
        self.repositories: dict[tuple[str, str], Repository] = {}  # by kind ("model" or "dataset") and id
        self.faults = Faults()
        self.log: list[Logged] = []
        self.page_size = 1000  # entries of a listing's page
        self.lock = threading.RLock()  # one request at a time changes or reads what is above
        self._ports = [_Port(self, endpoints.respond), _Port(self, storage.respond)]
        self.endpoint, self.storage_endpoint = (port.url for port in self._ports)

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *raised) -> None:
        self.close()

    def close(self) -> None:
        for port in self._ports:
            port.shutdown()
            port.server_close()

    def new_account(self, role: str = "write") -> Account:
        number = len(self.accounts) + 1
        account = Account(f"tester-{number}", f"hf_tester{number}", role)
        self.accounts[account.token] = account
        return account

    def account_of(self, request: Request) -> Account | None:
        """Whose token a request carries: None for an anonymous one."""
        credentials = request.headers.get("Authorization")
        if credentials is None:
            return None
        account = self.accounts.get(credentials.removeprefix("Bearer "))
        if account is None:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return account

    def find(self, kind: str, repo_id: str, account: Account | None) -> Repository:
        """The repository, if the account may see it. One that is hidden answers exactly as one that does not exist."""
        found = self.repositories.get((kind, repo_id))
        if found is None or (found.private and (account is None or account.name != found.namespace)):
            raise HubError(404 if account else 401, "RepoNotFound", "Repository not found")
        return found


class _Port(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # the clients download with many threads at once

    def __init__(self, hub: HubServer, respond: Callable[[HubServer, Request], Answer]):
        super().__init__(("127.0.0.1", 0), _Connection)
        self.hub = hub
        self.respond = respond
        self.url = f"http://127.0.0.1:{self.server_port}"
        # The default poll would make each shutdown take half a second.
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave in the middle of an answer
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    """One client's connection: reads requests, lets a fault strike or the port respond, writes answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Port

    def serve(self) -> None:
        fault = self.server.hub.faults.strike(self.command, self.path)
        if fault is Cut.REQUEST:
            self._log(None)
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return
        request = Request(self.command, self.path, self.headers, self._read_body())
        answer = fault if isinstance(fault, Answer) else self._respond(request)
        self._log(answer.status)
        written = answer.encode(with_body=self.command != "HEAD")
        if fault is Cut.ANSWER:
            written = written[: len(written) // 2]
            self.close_connection = True
        self.wfile.write(written)

    do_CONNECT = do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = serve

    def _respond(self, request: Request) -> Answer:
        if request.method == "CONNECT" or "://" in request.target:
            return HubError(403, None, f"Tests stay on loopback: {request.target}").answer
        try:
            with self.server.hub.lock:
                return self.server.respond(self.server.hub, request)
        except HubError as error:
            return error.answer
        except Exception:  # an error of this server must reach the client: a cut connection would be tried again
            return json_answer({"error": traceback.format_exc()}, 501)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _log(self, status: int | None) -> None:
        self.server.hub.log.append(Logged(self.command, self.path, status))

    def log_message(self, format, *arguments) -> None:
        """Nothing on stderr: `HubServer.log` has every request."""
