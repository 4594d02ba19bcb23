"""Counting rules: what each operation does, in terms, events and elements."""

from spikeloom.energy.rules import attention, delay_frames, elementwise, linear, neurons, rnn, roles, scan

__all__ = ["attention", "delay_frames", "elementwise", "linear", "neurons", "rnn", "roles", "scan"]
