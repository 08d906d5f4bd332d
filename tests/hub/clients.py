"""Points the real clients of this process, or of another one, at a test server."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import datasets
import huggingface_hub
import pytest
import transformers.dynamic_module_utils
from huggingface_hub import HfApi, HfFileSystem

from hub.faults import Faults
from hub.repository import Commit, Repository
from hub.server import Account, HubServer, Logged


@dataclass(frozen=True)
class Hub:
    """A test's view of the server: its own namespace, the requests since it began, and how to reach it."""

    server: HubServer
    account: Account  # owns the namespace; its token is the clients' default
    api: HfApi
    environment: dict[str, str]  # for a subprocess: all it needs to talk to this server and to nothing else
    start: int  # length of the server's log when the test began

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    @property
    def faults(self) -> Faults:
        return self.server.faults

    @property
    def log(self) -> list[Logged]:
        """The requests since the test began, in the order in which they were answered."""
        return self.server.log[self.start :]

    def repo_id(self, name: str) -> str:
        return f"{self.account.name}/{name}"

    def repository(self, name: str, kind: str = "model") -> Repository:
        """What the server keeps under a name of this test's namespace: commits with their files, refs."""
        return self.server.repositories[kind, self.repo_id(name)]

    def commits(self, name: str, kind: str = "model", revision: str = "main") -> list[Commit]:
        """A repository's commits, newest first. The oldest is the Hub's own, which brings .gitattributes."""
        return self.repository(name, kind).history(revision)


@contextmanager
def connected(server: HubServer, home: Path) -> Iterator[Hub]:
    """Point this process's Hugging Face libraries at the server, and exactly back when the block ends.

    Use it for a fixture with a wider scope than one test; a test takes the fixture `hub`.

    The libraries read their environment once, when they are imported. So the variables are set, the two modules that
    keep what was read are executed again in place, and the few copies that others took are replaced: that is the
    complete state which a fresh process with `Hub.environment` would have.

    Args:
        server: a running server.
        home: an empty folder for caches, tokens and modules of remote code.
    """
    account = server.new_account()
    environment = environment_for(server, account, home)
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environment.keys():
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        with executed_again(huggingface_hub.constants), executed_again(datasets.config):
            patch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)  # there is no variable for it
            patch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
            patch.setattr(transformers.utils.hub, "_hf_api", None)
            patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(home / "modules"))
            patch.setattr(sys, "path", list(sys.path))  # remote code adds the folder above
            forget_connections()
            try:
                api = HfApi(endpoint=server.endpoint, token=account.token)
                yield Hub(server, account, api, environment, start=len(server.log))
            finally:
                forget_connections()
                for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
                    del sys.modules[name]


def environment_for(server: HubServer, account: Account, home: Path) -> dict[str, str]:
    """This process's environment without what it says about hubs and proxies, and with what leads to the server."""
    foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and not name.lower().endswith("_proxy")
    }
    return kept | {
        "HF_ENDPOINT": server.endpoint,
        "HF_TOKEN": account.token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",  # the server speaks LFS only
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "DISABLE_SAFETENSORS_CONVERSION": "1",  # asks a public space to convert
        # datasets asks a second host for Parquet exports. It, and any other host, is answered by the server: refused.
        "http_proxy": server.endpoint,
        "https_proxy": server.endpoint,
        "no_proxy": "127.0.0.1",
    }


@contextmanager
def executed_again(module: ModuleType) -> Iterator[None]:
    """A module whose constants are those of the present environment; afterwards it is as it was before."""
    before = dict(vars(module))
    importlib.reload(module)
    try:
        yield
    finally:
        vars(module).update(before)
        for name in vars(module).keys() - before.keys():
            delattr(module, name)


def forget_connections() -> None:
    """Drop what the clients keep between calls: open connections with their proxies, and listings of repositories."""
    huggingface_hub.utils.close_session()
    HfFileSystem.clear_instance_cache()
