"""A writable Hub on loopback for the real clients. Standard library only, everything in memory.

It serves what the tests of this folder ask for: publishing, `load_dataset`, `from_pretrained`. The rest (Xet, tags,
search, other users, pages of long listings, ...) it refuses with status 501.
"""

import os
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from hub import endpoints
from hub.faults import Cut, Faults
from hub.messages import Answer, HubError, Request, json_answer
from hub.repository import Commit, Repository


class Logged(NamedTuple):
    """A request as it was answered; `status` is None where its own connection was cut before an answer."""

    method: str
    path: str  # quoted, with its query; a whole URL if it was meant for another host
    status: int | None


class HubServer(ThreadingHTTPServer):
    """Starts on construction, on a free port of loopback, until the end of a `with` block.

    A request for another host, which arrives here where a client takes this server for its proxy, is logged and
    refused: no test leaves the machine.
    """

    daemon_threads = True
    request_queue_size = 64  # the clients download with many threads at once
    user, token = "tester", "hf_tester"

    def __init__(self, home: Path):
        """home: an empty folder for the clients' caches, tokens and modules of remote code."""
        super().__init__(("127.0.0.1", 0), _Connection)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[tuple[str, str], Repository] = {}  # by kind ("model" or "dataset") and id
        self.faults = Faults()
        self.log: list[Logged] = []
        self.lock = threading.RLock()  # one request at a time changes or reads what is above
        self.environment = self._environment(home)
        # The default poll would make each shutdown take half a second.
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __exit__(self, *raised) -> None:
        self.shutdown()
        super().__exit__(*raised)

    def repo_id(self, name: str) -> str:
        return f"{self.user}/{name}"

    def repository(self, name: str, kind: str = "model") -> Repository:
        """What the server keeps under a name: commits with their files, refs."""
        return self.repositories[kind, self.repo_id(name)]

    def commits(self, name: str, kind: str = "model", revision: str = "main") -> list[Commit]:
        """A repository's commits, newest first. The oldest is the Hub's own, which brings .gitattributes."""
        return self.repository(name, kind).history(revision)

    def _environment(self, home: Path) -> dict[str, str]:
        """This process's environment without what it says about hubs and proxies, and with what leads here."""
        foreign, proxy = ("HF_", "HUGGING", "TRANSFORMERS_"), "_proxy"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and not k.lower().endswith(proxy)}
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # the server speaks LFS only
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "DISABLE_SAFETENSORS_CONVERSION": "1",  # asks a public space to convert
            # datasets asks a second host for Parquet exports. It, and any other host, is answered here: refused.
            "http_proxy": self.endpoint,
            "https_proxy": self.endpoint,
            "no_proxy": "127.0.0.1",
        }

    def find(self, kind: str, repo_id: str) -> Repository:
        found = self.repositories.get((kind, repo_id.removesuffix(".git")))
        if found is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return found

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave in the middle of an answer
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    """One client's connection: reads requests, lets a fault strike or the Hub respond, writes answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def serve(self) -> None:
        with self.server.lock:
            fault = self.server.faults.strike(self.command, self.path)
        if fault is Cut.REQUEST:
            self._log(None)
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, self.headers, body)
        answer = fault if isinstance(fault, Answer) else self._respond(request)
        self._log(answer.status)
        written = answer.encode(with_body=self.command != "HEAD")
        if fault is Cut.ANSWER:
            written = written[: len(written) // 2]
            self.close_connection = True
        self.wfile.write(written)

    do_CONNECT = do_GET = do_HEAD = do_POST = do_PUT = serve

    def _respond(self, request: Request) -> Answer:
        if request.method == "CONNECT" or "://" in request.target:
            return HubError(403, f"Tests stay on loopback: {request.target}").answer
        try:
            with self.server.lock:
                return endpoints.respond(self.server, request)
        except HubError as error:
            return error.answer
        except Exception:  # an error of this server must reach the client: a cut connection would be tried again
            return json_answer({"error": traceback.format_exc()}, 501)

    def _log(self, status: int | None) -> None:
        self.server.log.append(Logged(self.command, self.path, status))

    def log_message(self, format, *arguments) -> None:
        """Nothing on stderr: `HubServer.log` has every request."""
