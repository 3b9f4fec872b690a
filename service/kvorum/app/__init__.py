"""Composition root and life cycle: `node.Node` shows the whole machine on one screen, `run` is a process's life."""

from kvorum.app.run import run

__all__ = ["run"]
