"""Ctrl-C that is heard: also where Python would lose it, and while the main thread waits for a compiled program.

Python raises KeyboardInterrupt in whatever the main thread runs next. Where C has called that (JAX has a callback
of the garbage collector, and many of weak references), it is printed and lost. And while the main thread waits for
a compiled program it is not raised at all, though that program may ask a classifier on the host for minutes.
"""

from __future__ import annotations

import _thread
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# After which an interrupt that was lost comes again, seconds: by then the callback has ended.
AGAIN = 0.02


class _Watch:
    """A watch for Ctrl-C that every thread can look at."""

    def __init__(self):
        self.signals, self.written = socket.socketpair()
        for end in (self.signals, self.written):
            end.setblocking(False)
        self.seen = False

    def look(self) -> bool:
        """Tell whether Ctrl-C has been pressed."""
        with suppress(BlockingIOError):
            self.seen |= signal.SIGINT in self.signals.recv(4096)
        return self.seen


_watch: _Watch | None = None


def _interrupt_after(ended) -> None:
    with ended:
        time.sleep(AGAIN)
    _thread.interrupt_main()


@contextmanager
def heard() -> Iterator[None]:
    """Let Ctrl-C end the block, whenever it comes.

    Does nothing outside of the main thread, inside of another such block, and where somebody else handles SIGINT.
    """
    global _watch
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if _watch is not None or not is_ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch, hook = _Watch(), sys.unraisablehook

    def again(unraisable):
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return hook(unraisable)
        # what is raised in here is lost for good: so nothing is waited for, and the thread begins after the end
        with (ended := threading.Lock()):
            _thread.start_new_thread(_interrupt_after, (ended,))

    previous = signal.set_wakeup_fd(watch.written.fileno(), warn_on_full_buffer=False)
    if previous != -1:  # an event loop hears of signals that way, and goes on with it
        signal.set_wakeup_fd(previous)
    try:
        _watch, sys.unraisablehook = watch, again
        yield
    finally:
        _watch, sys.unraisablehook = None, hook
        signal.set_wakeup_fd(previous)
        watch.signals.close()
        watch.written.close()


def pressed() -> bool:
    """Tell whether Ctrl-C has been pressed in a block of :func:`heard`, though nothing may be raised yet."""
    return _watch is not None and _watch.look()
