"""Threads that make what a caller will ask for next, in order and a bounded number ahead.

A thread is given something to make only where that is below the bound, so one that nobody asks any more has nothing to
do: it ends with the iterator, and keeps no process from ending. Errors arrive in the place of what could not be made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import repeat
from typing import TypeVar

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def ahead(
    make: Callable[[_Item], _Made], items: Iterable[_Item], count: int, threads: int | None = None, name: str = "read"
) -> Generator[_Made]:
    """`map`, where threads (None: as many) make the next `count` while the caller is busy with the last."""
    waiting: deque[Future[_Made]] = deque()
    pool = ThreadPoolExecutor(threads or count, thread_name_prefix=name)
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def beside(make: Callable[[], _Made | None], count: int) -> Generator[_Made]:
    """What `make` returns until it returns None; one thread calls it, `count` times ahead of the caller."""
    with closing(ahead(lambda _: make(), repeat(None), count, 1, "make")) as coming:
        for made in coming:
            if made is None:
                return
            yield made
