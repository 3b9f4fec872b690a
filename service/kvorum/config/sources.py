"""
Where values come from: the TOML file and ``KVORUM_SECTION__KEY`` variables, each value with the name of its source.

Unknown things become warnings here, bad values errors; what the values mean together is `load`'s business.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Final, NamedTuple, get_origin

from pydantic import ValidationError

from kvorum.config.describe import allowed, base_type
from kvorum.config.settings import Section, Settings
from kvorum.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic.fields import FieldInfo

SECTIONS: Final[dict[str, type[Section]]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
TUNING_SECTIONS: Final = frozenset(
    ("bloom_filter", "cache", "compaction", "compression", "concurrency", "memory", "performance")
)
"""Storage tuning of the predecessor's files for which the engine has no knob; ignored with one line each."""

_PREFIX: Final = "KVORUM_"
_SEPARATOR: Final = "__"
_TRUE: Final = frozenset(("true", "1", "yes", "on"))
_FALSE: Final = frozenset(("false", "0", "no", "off"))


class Value(NamedTuple):
    """One value and who said it."""

    value: object
    source: str


Values = dict[tuple[str, str], Value]


def bad_value(source: str, section: str, key: str, value: object, must_be: str) -> StartupError:
    """The one form of complaint about a value: source, section, key, value, what is allowed."""
    return StartupError(f"{source}: [{section}] {key} = {_shown(value)} is not allowed; it must be {must_be}")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return _shown(list(value))
    return f'"{value}"' if isinstance(value, str) else repr(value).replace("'", '"')


def read_file(path: Path, warnings: list[str]) -> Values:
    """
    Every known key of a TOML file.

    Raises:
        StartupError: The file cannot be read, is not TOML, or a known section is not a table.
    """
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        msg = f"cannot read the configuration file {path}: {error.strerror}; check the path given with --config"
        raise StartupError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not valid TOML: {error}"
        raise StartupError(msg) from error
    values: Values = {}
    for section, table in tables.items():
        if section in TUNING_SECTIONS:
            keys = ", ".join(table) if isinstance(table, dict) else ""
            warnings.append(f"{path}: [{section}] is ignored, the storage engine has no such knobs: {keys}")
        elif section == "tls":
            msg = f"{path}: [tls] is not supported by this release; remove it to run without encryption"
            raise StartupError(msg)
        elif section not in SECTIONS:
            warnings.append(f"{path}: unknown section [{section}] is ignored")
        elif not isinstance(table, dict):
            msg = f"{path}: {section} = {_shown(table)} is not allowed; it must be a table that begins with [{section}]"
            raise StartupError(msg)
        else:
            _read_table(path, section, table, values, warnings)
    return values


def _read_table(path: Path, section: str, table: dict[str, object], values: Values, warnings: list[str]) -> None:
    known = SECTIONS[section].model_fields
    unknown = [key for key in table if key not in known]
    if unknown and SECTIONS[section].tuning:
        warnings.append(f"{path}: [{section}] is ignored in part, the engine has no such knobs: {', '.join(unknown)}")
    else:
        warnings.extend(f"{path}: unknown key {key} in [{section}] is ignored" for key in unknown)
    for key in known:
        if key in table:
            value = table[key]
            values[section, key] = Value(tuple(value) if isinstance(value, list) else value, str(path))


def read_environment(environment: Mapping[str, str], warnings: list[str]) -> Values:
    """Every ``KVORUM_SECTION__KEY``; names without the double underscore belong to others (Kubernetes makes some)."""
    values: Values = {}
    for name in sorted(environment):
        if not name.startswith(_PREFIX) or _SEPARATOR not in name:
            continue
        section, _, key = name.removeprefix(_PREFIX).lower().partition(_SEPARATOR)
        field = SECTIONS[section].model_fields.get(key) if section in SECTIONS else None
        if field is None:
            warnings.append(f"unknown environment variable {name} is ignored; the form is {_PREFIX}SECTION__KEY")
            continue
        values[section, key] = Value(_from_text(environment[name], field), f"environment variable {name}")
    return values


def _from_text(text: str, field: FieldInfo) -> object:
    """The value a variable means; text that does not fit stays text, and validation complains about it."""
    kind = base_type(field)
    word = text.strip()
    if kind is bool and word.lower() in _TRUE | _FALSE:
        return word.lower() in _TRUE
    if kind is int and word.removeprefix("-").isdigit() and word.isascii():
        return int(word)
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in word.split(",") if part.strip())
    return text


def build_sections(values: Values, warnings: list[str]) -> dict[str, Section]:
    """
    Check every value against its key and build the sections.

    Raises:
        StartupError: A known key has a bad value, unless it only tunes the storage engine.
    """
    return {name: _build(name, kind, values, warnings) for name, kind in SECTIONS.items()}


def _build(name: str, kind: type[Section], values: Values, warnings: list[str]) -> Section:
    given = {key: value for (section, key), value in values.items() if section == name}
    while True:
        try:
            return kind.model_validate({key: value.value for key, value in given.items()})
        except ValidationError as error:
            key = str(error.errors()[0]["loc"][0])
            bad = given.pop(key)
            complaint = bad_value(bad.source, name, key, bad.value, allowed(kind.model_fields[key]))
            if not kind.tuning:
                raise complaint from None
            warnings.append(f"{complaint}; the default stays")
