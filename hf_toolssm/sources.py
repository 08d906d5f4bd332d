"""The source of this package's own modules: what a module is made of, and a digest that changes with it."""

import ast
import hashlib
from functools import cache
from importlib.util import find_spec

PACKAGE = __name__.partition(".")[0]


def source_of(module: str) -> str:
    """The source text of a module, wherever the package is installed."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.loader is not None
    return spec.loader.get_source(module)  # type: ignore[attr-defined]  # every loader of source files has it


def imported_modules(source: str) -> list[str]:
    """The modules of this package that a source text imports from, wherever the imports stand."""
    modules = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [module for module in modules if module is not None and module.split(".")[0] == PACKAGE]


@cache
def digest(*modules: str) -> str:
    """A hash of the source of these modules and of all that they import from this package, directly or not.

    What is cached on disk of what they computed is stale once it differs.
    """
    sources: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in sources:
            sources[module] = source_of(module)
            waiting.extend(imported_modules(sources[module]))
    hashed = hashlib.sha256()
    for module in sorted(sources):
        hashed.update(f"{module}\0{sources[module]}\0".encode())
    return hashed.hexdigest()
