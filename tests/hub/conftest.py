"""The Hub that the tests of this folder publish to and load from."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import datasets
import huggingface_hub
import pytest
import transformers
from huggingface_hub import HfFileSystem

from hub.server import HubServer


@pytest.fixture
def hub(tmp_path):
    """An empty Hub on loopback for the real clients, with a user, a token and a cache that are this test's own.

    In this process: huggingface_hub, datasets and transformers go to the server for as long as the test runs. In a
    subprocess, where a model's own code must run: pass `env=hub.environment`. Afterwards all is offline as it was.

    `hub.faults` orders errors and cut connections, `hub.log` has the requests, `hub.commits("x")` what was published.
    A test fails that orders a fault which strikes no request.
    """
    with HubServer(tmp_path / "hf_home") as server, connected(server):
        yield server
    assert not server.faults.missed(), "these faults matched no request"


@contextmanager
def connected(server: HubServer) -> Iterator[None]:
    """Point this process's Hugging Face libraries at the server, and exactly back when the block ends.

    The libraries read their environment once, when they are imported. So the variables are set, the two modules that
    keep what was read are executed again in place, and the few copies that others took are replaced: that is the
    complete state which a fresh process with `HubServer.environment` would have.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - server.environment.keys():
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        with executed_again(huggingface_hub.constants), executed_again(datasets.config):
            patch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)  # there is no variable for it
            patch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
            patch.setattr(transformers.utils.hub, "_hf_api", None)
            forget_connections()
            try:
                yield
            finally:
                forget_connections()


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
