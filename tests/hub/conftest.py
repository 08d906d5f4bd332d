"""The Hub that the tests of this folder publish to and load from."""

import pytest

from hub.clients import connected
from hub.server import HubServer


@pytest.fixture(scope="session")
def hub_server():
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(hub_server, tmp_path):
    """A Hub on loopback for the real clients, with a namespace, a token and a cache that are this test's own.

    In this process: huggingface_hub, datasets and transformers go to the server for as long as the test runs, with
    this test's token, whether they are called through `hub.api` or as a user would: `push_to_hub(hub.repo_id("x"))`.
    In a subprocess: pass `env=hub.environment`. A test may mix both. Afterwards all is offline again as it was.

    `hub.faults` orders errors and cut connections, `hub.log` has the requests, `hub.commits("x")` what was published.
    A test fails that orders a fault which strikes no request.
    """
    with connected(hub_server, tmp_path / "hf_home") as hub:
        yield hub
    missed = hub_server.faults.withdraw()
    assert not missed, f"These faults matched no request: {missed}"
