"""
Stopping at SIGINT and SIGTERM.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(stop: Callable[[], None], logger: logging.Logger) -> Iterator[None]:
    """
    Call `stop` at the first signal; the second ends the process, whatever it is doing.

    The handlers are Python's, not the event loop's: those wait for a blocked loop.
    Before the second signal nothing is left but the default action, which needs no Python at all; a program's own
    handler gets its place back.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        logger.debug("Signals are left alone here", extra={"action": "skip_signal_handlers"})
        yield
        return

    def handle(*_: Any) -> None:
        for each, handler in previous.items():
            signal.signal(each, signal.SIG_DFL if _is_pythons(handler) else handler)
        stop()

    previous = {each: signal.getsignal(each) for each in _SIGNALS}
    for each in _SIGNALS:
        signal.signal(each, handle)
    logger.debug("Installed signal handlers", extra={"action": "install_signal_handlers"})
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        logger.debug("Uninstalled signal handlers", extra={"action": "uninstall_signal_handlers"})


def _is_pythons(handler: Any) -> bool:
    """Tell Python's and asyncio's own SIGINT handlers, which only raise or cancel, from a program's."""
    module = getattr(getattr(handler, "func", None), "__module__", "")
    return handler in (None, signal.default_int_handler) or "asyncio" in module
