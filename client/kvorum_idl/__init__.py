"""
The public Thrift contract of kvorum: the IDL file and its loader, the one thing client and service share.

Structs and the service are attributes of this package (``kvorum_idl.GetRequest``, ``kvorum_idl.TransactionalKV``), read
from ``kvstore.thrift`` at first use.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import thriftpy2

if TYPE_CHECKING:
    from types import ModuleType

IDL_PATH = Path(__file__).with_name("kvstore.thrift")
"""Where the IDL file lies; hand it to any Thrift compiler."""


@lru_cache(maxsize=1)
def load() -> ModuleType:
    """Parse the IDL once and return the module that holds every struct and ``TransactionalKV``."""
    return thriftpy2.load(str(IDL_PATH), module_name="kvorum_idl.kvstore_thrift")


def __getattr__(name: str) -> object:
    """Look a struct or the service up in the loaded IDL."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(load(), name)
