"""The work on many items in processes of their own, with the results in order."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from utils.errors import InputError
from utils.opencv import cv2

WORTH = 10.0  # seconds: workers need about 4 to start, so what is left must take this process longer
AHEAD = 2  # items of each worker that are worked on, or done and not yet taken: the limit of memory
PRELOADED = ["torch", "utils.data.make"]  # imported once for all workers; this is most of the time they need to start

Item, Result = TypeVar("Item"), TypeVar("Result")


class Workers:
    """Processes that start when there is enough work, and end with the `with` block.

    They are not forked from this process: it may have threads of PyTorch and OpenCV, whose locks a fork would copy.

    Args:
        count: how many processes; with 0 this process does everything.
    """

    def __init__(self, count: int):
        self.count = count
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the processes; `map` may start others."""
        if self.pool:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results of a function, in the order of the items; what it raises is raised here.

        Args:
            function: it and its items and results can be pickled. Which process calls it must not matter.

        Raises:
            InputError: a worker was killed.
        """
        left, done, seconds = deque(items), 0, 0.0
        while left and not self.pool:
            began = time.perf_counter()
            result = function(left.popleft())
            seconds, done = seconds + time.perf_counter() - began, done + 1
            yield result
            if self.count and seconds / done * len(left) > WORTH:
                self.pool = self._start()
        waiting: deque[Future[Result]] = deque()
        while left or waiting:
            try:
                while left and len(waiting) < AHEAD * self.count:
                    waiting.append(self.pool.submit(function, left.popleft()))
                result = waiting.popleft().result()
            except BrokenProcessPool as error:
                self.stop()
                raise InputError(
                    "a worker process was killed, as happens where memory runs out; set data.num_workers lower, or to 0"
                ) from error
            yield result

    def _start(self) -> ProcessPoolExecutor:
        can_fork = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
        context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        if can_fork:
            context.set_forkserver_preload(PRELOADED)
        return ProcessPoolExecutor(self.count, context, initializer=_begin)


def _begin() -> None:
    """The first thing that a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends the workers
    cv2.setNumThreads(1)  # a core for each worker
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process as soon as the main one was killed: it would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
