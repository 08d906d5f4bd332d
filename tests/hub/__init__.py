"""A package, so that this conftest is hub.conftest: other tests import helpers from the one named conftest."""
