"""Where compiled kernels are kept between processes, and when they are stale.

numba compares a kernel's cache with the file that defines it, and with nothing else: after a change to a function in
another file that the kernel calls, it goes on running the old one. Here the source of every file of this package that
the kernel's module needs counts. Where nothing can be written, kernels are compiled anew in every process.
"""

import hashlib
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite
from numba.core import caching

from hf_toolssm.sources import digest

logger = logging.getLogger(__name__)


class _Stamped:
    """A place for a kernel's cache whose content is stale once any source that the kernel needs has changed."""

    _digest: str

    @classmethod
    def from_function(cls, py_func: Callable, py_file: str) -> Any:
        place = super().from_function(py_func, py_file)  # type: ignore[misc]  # of numba's locator behind this class
        if place is not None:
            place._digest = digest(py_func.__module__)
        return place

    def get_source_stamp(self) -> tuple[str, str]:
        return self._digest, llvmlite.__version__


class _UserProvided(_Stamped, caching.UserProvidedCacheLocator):
    pass


class _InTree(_Stamped, caching.InTreeCacheLocator):
    pass


class _UserWide(_Stamped, caching.UserWideCacheLocator):
    pass


class _Places(caching.CompileResultCacheImpl):
    _locator_classes = [_UserProvided, _InTree, _UserWide]  # in numba's own order


class _Checked(caching.IndexDataCacheFile):
    """Files that are known to be whole: what a machine's sudden end leaves may be as long, and full of zeros."""

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        super()._save_data(name, (hashlib.sha256(content).digest(), content))

    def _load_data(self, name: str) -> Any:
        found, content = super()._load_data(name)
        if hashlib.sha256(content).digest() != found:
            raise pickle.UnpicklingError(f"{name} is not what was written")
        return pickle.loads(content)


_DAMAGED = (EOFError, pickle.UnpicklingError, ValueError, TypeError, KeyError, AttributeError, IndexError)
"""What reading a damaged pickle raises."""


class _KernelCache(caching.FunctionCache):
    _impl_class = _Places

    def __init__(self, py_func: Callable) -> None:
        super().__init__(py_func)
        self._cache_file.__class__ = _Checked

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a full disk, or one that is read-only since this process started
            logger.warning("compiled kernels cannot be kept in %s (%s)", self.cache_path, error)
        except _DAMAGED as error:  # files that a machine's sudden end has left half-written
            logger.warning("compiled kernels in %s are damaged and compiled anew (%s)", self.cache_path, error)
            self.flush()


def keep_on_disk(dispatcher: Any) -> None:
    """Lets a numba function be compiled once for all processes, where there is a place to keep it.

    Places are tried in numba's order: the folder that NUMBA_CACHE_DIR names, `__pycache__` beside the source, the
    user's cache folder.
    """
    try:
        dispatcher._cache = _KernelCache(dispatcher.py_func)
    except RuntimeError as error:  # numba found no place
        logger.warning(
            "kernels are compiled anew in every process, which takes about half a minute: set NUMBA_CACHE_DIR to a "
            "folder that can be written (%s)",
            error,
        )
