"""Bridges: neurons and layers of SpikingJelly, snnTorch and Norse, for networks that are counted without change.

A library is never imported for its own sake: its bridge is connected when the counter first meets a module whose class,
or a base of it, comes from there.
"""

from __future__ import annotations

from importlib import import_module

_WAITING = {"norse", "snntorch", "spikingjelly"}
"""Libraries, by import name, of which no module was met so far."""


def connect(kinds: tuple[type, ...]) -> bool:
    """Register the roles of the libraries that a class and its bases come from; True if there was a new one."""
    found = {kind.__module__.partition(".")[0] for kind in kinds} & _WAITING
    for name in found:
        import_module(f"{__name__}.{name}").register()
        _WAITING.discard(name)
    return bool(found)
