"""
TOML, environment and flags in; one frozen `Settings` out. The only reader of any of the three.

Begin with `settings` (every section, key and default), then `load` (where values come from, and who wins).
"""
