"""
Crash consistency of what lies on disk: every state that a crash can leave, rebuilt, opened and judged. Not shipped.

`lives` drives the real log over a recording disk, `history` remembers what it promised, `images` rebuilds what a power
cut can leave, `judge` opens that; `faults` fails each call once, `flips` turns bits over, `store` kills a process that
applies. Begin in `campaign`.
"""
