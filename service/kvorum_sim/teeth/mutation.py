"""
Putting a bug into a function of the product, and taking it out again.

A bug is a change of the source text: the function is compiled again with the change, and its code object takes the
place of the original one. Whoever holds the function, a bound method in a table included, runs the changed code; the
product has no line for it and pays nothing. A change whose text is not there any more fails loudly.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import textwrap
import types
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ANNOTATIONS: Final = __future__.annotations.compiler_flag


class StaleBugError(Exception):
    """The product has changed where a bug belongs."""


@dataclass(frozen=True, slots=True)
class Edit:
    """
    One change of one function.

    Args:
        target: ``package.module:Class.method`` or ``package.module:function``.
        changes: Pairs of a text that occurs exactly once in the function, less its common indent, and the text that
            takes its place.
    """

    target: str
    changes: tuple[tuple[str, str], ...]

    def function(self) -> types.FunctionType:
        """The function as it is, under its decorators."""
        module, _, path = self.target.partition(":")
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = inspect.getattr_static(found, name)
        if isinstance(found, property):
            found = found.fget
        found = inspect.unwrap(getattr(found, "__func__", found))
        if not isinstance(found, types.FunctionType):
            msg = f"{self.target} is no function"
            raise StaleBugError(msg)
        return found

    def code(self) -> types.CodeType:
        """
        The changed code.

        Raises:
            StaleBugError: A text to be changed is not there, or not once.
        """
        function = self.function()
        text = textwrap.dedent(inspect.getsource(function))
        for old, new in self.changes:
            if text.count(old) != 1:
                msg = f"{self.target} holds {text.count(old)} times, not once: {old!r}"
                raise StaleBugError(msg)
            text = text.replace(old, new)
        if function.__code__.co_freevars:
            # `super()` needs the cell of a class around it.
            text = "class _Around:\n" + textwrap.indent(text, "    ")
        code = _find(compile(text, f"<bug in {self.target}>", "exec", _ANNOTATIONS), function.__name__)
        if code is None or code.co_freevars != function.__code__.co_freevars:
            msg = f"{self.target} cannot be compiled apart from its surroundings"
            raise StaleBugError(msg)
        return code


def _find(code: types.CodeType, name: str) -> types.CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if constant.co_name == name:
                return constant
            inner = _find(constant, name)
            if inner is not None:
                return inner
    return None


@dataclass(frozen=True, slots=True)
class Bug:
    """
    One seeded bug.

    Args:
        name: Short and unique.
        number: In the catalogue of classical Raft bugs; 0 for one that kvorum really had.
        text: What is wrong, in one sentence.
        edits: The changes that make it.
        kinds: Kinds of fault that bring it out; stories with these come first, and then some of any kind.
        tests: Test files that may notice it, from service/tests; for what no cluster shows, or seldom.
        reason: Why nothing notices it, where that is so.
    """

    name: str
    number: int
    text: str
    edits: tuple[Edit, ...]
    kinds: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    reason: str = ""

    @property
    def pure(self) -> bool:
        """Whether it lies in the Raft core, so that transcripts and the simulation of cores can show it."""
        return any(edit.target.startswith(("kvorum.raft.", "kvorum.core.cluster")) for edit in self.edits)

    @property
    def stale(self) -> str:
        """Why it cannot be put into the product as it is now; empty if it can."""
        try:
            for edit in self.edits:
                edit.code()
        except (StaleBugError, AttributeError, ImportError, SyntaxError) as error:
            return f"{self.name}: {type(error).__name__}: {error}"
        return ""

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """The product has this bug, in this process, until the end of the block."""
        with ExitStack() as stack:
            for edit in self.edits:
                function, code = edit.function(), edit.code()
                stack.callback(setattr, function, "__code__", function.__code__)
                function.__code__ = code
            yield


def edit(target: str, *changes: tuple[str, str]) -> Edit:
    """An `Edit` of a module below ``kvorum``."""
    return Edit(f"kvorum.{target}", changes)
