"""Counting rules: what each operation does, in terms, events and elements."""

from spikeloom.energy.rules import attention, elementwise, linear, neurons, rnn, roles

__all__ = ["attention", "elementwise", "linear", "neurons", "rnn", "roles"]
