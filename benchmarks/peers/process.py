"""The driver's side of a worker: a process that answers JSON lines, and may crash, hang or lack its library."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.environments import ROOT


class LostError(RuntimeError):
    """A worker has ended, or was ended because it did not answer; the message says which."""


class FailedError(RuntimeError):
    """A worker could not do what was requested, and can take another request."""


class Process:
    """A worker. Its first answer, which needs no question, is `hello`."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]):
        # Closed by `end`.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=variables, cwd=ROOT
        )
        assert self.process.stdout is not None
        self._selector, self._buffer = selectors.DefaultSelector(), b""
        self._selector.register(self.process.stdout, selectors.EVENT_READ)
        self.lost: str | None = None

    def hello(self, limit: float) -> dict[str, Any]:
        """The first answer."""
        return self._hear(limit)

    def ask(self, question: dict[str, Any], limit: float) -> dict[str, Any]:
        """The answer to a question, within `limit` seconds.

        Raises:
            LostError: the process has ended.
            FailedError: it answers that it failed.
        """
        if self.lost is not None:
            raise LostError(self.lost)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            self._lose(self._end_in_words())
        return self._hear(limit)

    def _hear(self, limit: float) -> dict[str, Any]:
        until = time.monotonic() + limit
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0 or not self._selector.select(left):
                self.process.kill()
                self._lose(f"no answer within {limit:g} s")
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                self._lose(self._end_in_words())
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\n", 1)
        reply = json.loads(line)
        if "failed" in reply:
            raise FailedError(reply["failed"])
        return reply

    def _lose(self, why: str) -> None:
        self.lost = why
        raise LostError(why)

    def _end_in_words(self) -> str:
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "it closed its output"
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        if code < 0:
            return f"the process died of {signal.Signals(-code).name}"
        return f"the process ended with {code}: {lines[-1][:300] if lines else 'it said nothing'}"

    def end(self) -> None:
        """Ask the process to end; if it does not, kill it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._selector.close()
        self.process.stdout.close()
        self._errors.close()
