"""What a key allows, in words: an error must tell the way out, not only that there is none."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le

from kvorum.core.operations import CONSISTENCY_ALIASES, Consistency

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_LEVELS = {Consistency.LOCAL, Consistency.LEADER, Consistency.READ_INDEX}


def base_type(field: FieldInfo) -> object:
    """The type of a key without its ``| None`` and its annotations."""
    annotation: object = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(arm for arm in get_args(annotation) if arm is not types.NoneType)
    if hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    return annotation


def _bounds(field: FieldInfo) -> tuple[object, object]:
    metadata = list(field.metadata)
    for arm in get_args(field.annotation):
        for extra in getattr(arm, "__metadata__", ()):
            metadata += getattr(extra, "metadata", None) or [extra]
    low = next((extra.ge for extra in metadata if isinstance(extra, Ge)), None)
    high = next((extra.le for extra in metadata if isinstance(extra, Le)), None)
    return low, high


def allowed(field: FieldInfo) -> str:
    """What may stand there, as the end of the sentence "it must be ..."."""
    kind = base_type(field)
    if get_origin(kind) is Literal:
        choices = list(get_args(kind))
        if set(choices) == _LEVELS:
            choices += [alias for alias in CONSISTENCY_ALIASES if alias not in choices]
        return " or ".join(f'"{choice}"' for choice in choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
    if kind is bool:
        return "true or false"
    if kind is int:
        low, high = _bounds(field)
        return "a whole number" + (f" from {low}" if low is not None else "") + (f" to {high}" if high else "")
    if get_origin(kind) is tuple:
        return 'a list of "host:port"'
    return "a text that is not empty"
