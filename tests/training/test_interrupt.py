"""Signals while a training runs."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from spikeloom.training.interrupt import watch


@pytest.fixture
def usual() -> Iterator[None]:
    """Python's own handler, also where the tests were started in the background, which ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual")
def test_the_first_signal_is_noted_and_the_second_acts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with watch() as found:
        assert found.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        assert found.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_come_back_without_a_signal() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with watch():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_cannot_watch_and_does_not_fail() -> None:
    seen: list[object] = []

    def work() -> None:
        with watch() as found:
            seen.append(found.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
