"""
Keeps a worker alive in the database, from a thread and a connection of its own.

Heartbeats, the clock's work (`tick_v1`), requests to abort and wake-ups go on while the event loop is blocked, while
the worker shuts down, and while all slots are taken.
Nothing that a notification says is believed: it only makes the worker look.
"""

from __future__ import annotations

import hashlib
import random
import threading
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from pyprocrastinate import operations
from pyprocrastinate.link import backoff

if TYPE_CHECKING:
    from pyprocrastinate.shift import Shift
    from pyprocrastinate.wires import PulseWire
    from pyprocrastinate.worker import Worker

# However many notifications come, the database is asked this often at most.
_SHORTEST_INTERVAL = 0.05
_TICK_JITTER = 0.05


class Pulse:
    """The thread; `worker_id` may change while it runs, and None keeps it from speaking for anybody."""

    def __init__(self, worker: Worker, patient: Shift) -> None:
        self.worker_id: int | None = None
        self._connector = worker.connector
        self._patient = patient
        self._logger = worker.logger
        self._listen = worker.listen_notify
        self._interval = min(worker.update_heartbeat_interval, worker.abort_job_polling_interval)
        self._payloads = None if worker.queues is None else {wake_payload(queue) for queue in worker.queues}
        self._wire: PulseWire | None = None
        self._beat_at = self._beat_no_sooner = 0.0
        self._tick_at: float | None = None
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pyprocrastinate-pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def poke(self) -> None:
        """Give a heartbeat now."""
        self._beat_at = 0.0
        self._hurry.set()
        if wire := self._wire:
            wire.interrupt()

    def sever(self) -> None:
        """Break the connection, if its end no longer answers."""
        if wire := self._wire:
            wire.sever()

    def stop(self, patience: float) -> None:
        """Come to an end, but wait no longer than this for the database."""
        self._stopping.set()
        if self._thread.ident is not None:
            self.poke()
            self._thread.join(patience)
        if self._thread.is_alive():
            self.sever()
            self._thread.join(1.0)

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            try:
                with closing(self._connector.open_pulse_wire()) as self._wire:
                    if self._listen:
                        self._wire.listen()
                    else:
                        self._logger.debug("Notifications are not used", extra={"action": "listen_notify_disabled"})
                    # Whatever was said while nobody listened.
                    self._beat_at = 0.0
                    self._patient.wake()
                    while not self._stopping.is_set():
                        self._serve(self._wire)
                        attempt = 0
            except psycopg.Error as error:
                if not self._stopping.is_set():
                    extra = {"action": "update_heartbeats_error"}
                    self._logger.warning("The connection for heartbeats is broken: %s", error, extra=extra)
            except Exception:
                self._logger.exception("The thread for heartbeats failed", extra={"action": "update_heartbeats_error"})
            # Whoever pokes has found the database there again.
            self._hurry.clear()
            if not self._stopping.is_set():
                self._hurry.wait(backoff(attempt))
            attempt += 1

    def _serve(self, wire: PulseWire) -> None:
        """Do what is due, then wait until something else is."""
        now = monotonic()
        if now >= max(self._beat_at, self._beat_no_sooner):
            self._beat(wire, now)
        if self._tick_at is not None and now >= self._tick_at:
            self._tick(wire)
        due = min(max(self._beat_at, self._beat_no_sooner), self._tick_at or float("inf"))
        self._heed(wire.wait(max(0.0, due - monotonic())))

    def _beat(self, wire: PulseWire, now: float) -> None:
        self._beat_at = now + self._interval
        self._beat_no_sooner = now + _SHORTEST_INTERVAL
        worker_id = self.worker_id
        if worker_id is None:
            return
        answer = wire.call(operations.heartbeat(worker_id))
        if answer.next_tick_in is not None:
            self._tick_at = now + answer.next_tick_in + random.uniform(0, _TICK_JITTER)  # noqa: S311
        if not answer.registered:
            self._patient.lost(worker_id)
            return
        self._patient.beat(now)
        if answer.abort:
            self._patient.abort(list(answer.abort))

    def _tick(self, wire: PulseWire) -> None:
        # Until the answer says otherwise; a tick that fails must not be asked for again and again.
        self._tick_at = monotonic() + 5.0
        events, next_tick_in = wire.call(operations.tick())
        if next_tick_in is not None:
            self._tick_at = monotonic() + next_tick_in + random.uniform(0, _TICK_JITTER)  # noqa: S311
        if events:
            self._patient.ticked(events)

    def _heed(self, payloads: set[str]) -> None:
        """Look up because of what was notified."""
        if "a" in payloads:
            self._beat_at = 0.0
        if self._payloads is None:
            woken = any(payload.startswith("q") for payload in payloads)
        else:
            woken = not self._payloads.isdisjoint(payloads)
        if woken:
            self._patient.wake()
        if payloads:
            # The worker knows by now; a flood is read in gulps.
            self._stopping.wait(0.002)


def wake_payload(queue: str) -> str:
    """Return what is notified when a job of this queue may be ready."""
    return "q" + hashlib.sha256(queue.encode()).hexdigest()[:8]
