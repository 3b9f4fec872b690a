"""``kvorum get``, ``set``, ``delete`` and ``range``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.cli.output import OutputFormat, print_json, read_endpoints, run_async, usage_error
from kvorum.cli.text import read_bytes, show_bytes
from kvorum_client import KvorumClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import NoReturn


class KeyCommand:
    """One command about keys: its options, and how it prints."""

    def __init__(
        self, endpoints: str, *, as_hex: bool, timeout_s: float, output: OutputFormat, family: str | None = None
    ) -> None:
        self._endpoints = read_endpoints(endpoints)
        self._as_hex = as_hex
        self._timeout_s = timeout_s
        self._json = output is OutputFormat.JSON
        self._family = family

    def _read(self, text: str) -> bytes:
        try:
            return read_bytes(text, as_hex=self._as_hex)
        except ValueError as problem:
            usage_error(str(problem))

    def _show(self, data: bytes) -> str:
        return show_bytes(data, as_hex=self._as_hex)

    def _run(self, work: Callable[[KvorumClient], Awaitable[int]], consistency: str | None = None) -> NoReturn:
        async def connected() -> int:
            async with KvorumClient(self._endpoints, timeout_s=self._timeout_s, consistency=consistency) as client:
                return await work(client)

        run_async(connected())

    def get(self, key_text: str, consistency: str | None) -> NoReturn:
        """Print a value; exit code 1 if there is none."""
        key = self._read(key_text)

        async def work(client: KvorumClient) -> int:
            value = await client.get(key, family=self._family)
            if self._json:
                shown = None if value is None else self._show(value)
                print_json({"key": self._show(key), "found": value is not None, "value": shown})
            elif value is not None:
                print(self._show(value))
            return 0 if value is not None else 1

        self._run(work, consistency)

    def set(self, key_text: str, value_text: str) -> NoReturn:
        """Write a key."""
        key, value = self._read(key_text), self._read(value_text)

        async def work(client: KvorumClient) -> int:
            await client.set(key, value, family=self._family)
            self._acknowledge(key)
            return 0

        self._run(work)

    def delete(self, key_text: str) -> NoReturn:
        """Remove a key."""
        key = self._read(key_text)

        async def work(client: KvorumClient) -> int:
            await client.delete(key, family=self._family)
            self._acknowledge(key)
            return 0

        self._run(work)

    def _acknowledge(self, key: bytes) -> None:
        if self._json:
            print_json({"key": self._show(key), "ok": True})
        else:
            print("OK")

    def range(
        self,
        begin_text: str,
        end_text: str | None,
        *,
        limit: int,
        reverse: bool,
        keys_only: bool,
        consistency: str | None,
    ) -> NoReturn:
        """Print pairs as they come, one a line, key and value separated by a tab."""
        begin = self._read(begin_text)
        end = None if end_text is None else self._read(end_text)

        async def work(client: KvorumClient) -> int:
            pairs = []
            async for key, value in client.scan(begin, end, limit=limit or None, reverse=reverse, family=self._family):
                shown_key, shown_value = self._show(key), self._show(value)
                if self._json:
                    pairs.append({"key": shown_key} if keys_only else {"key": shown_key, "value": shown_value})
                else:
                    print(shown_key if keys_only else f"{shown_key}\t{shown_value}")
            if self._json:
                print_json(pairs)
            return 0

        self._run(work, consistency)
