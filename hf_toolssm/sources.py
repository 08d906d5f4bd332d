"""The source of this package's own modules: what a module is made of, and a digest that changes with it."""

import ast
import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType

PACKAGE = __name__.partition(".")[0]


def _source_of(module: str) -> str:
    """The source text of a module, wherever the package is installed."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.loader is not None
    return spec.loader.get_source(module)  # type: ignore[attr-defined]  # every loader of source files has it


def _imported(source: str) -> list[str]:
    """The modules of this package that a source text imports from, wherever the imports stand."""
    modules = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [module for module in modules if module is not None and module.split(".")[0] == PACKAGE]


def needed_sources(modules: Iterable[str], given: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The source of these modules and of all that they import from this package, directly or not, by module.

    Args:
        modules: to begin with.
        given: sources that stand in the place of modules' own.
    """
    sources = dict(given)
    waiting = [*modules, *(needed for source in given.values() for needed in _imported(source))]
    while waiting:
        module = waiting.pop()
        if module not in sources:
            sources[module] = _source_of(module)
            waiting.extend(_imported(sources[module]))
    return sources


@cache
def digest(module: str) -> str:
    """A hash of a module's `needed_sources`: what is cached on disk of what it computed is stale once it differs."""
    hashed = hashlib.sha256()
    for name, source in sorted(needed_sources([module]).items()):
        hashed.update(f"{name}\0{source}\0".encode())
    return hashed.hexdigest()
