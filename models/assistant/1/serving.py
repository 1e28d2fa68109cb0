"""Many decoupled requests at once: one event loop in a thread, and a count of how each request ended."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import triton_python_backend_utils as pb_utils

Tensors = list[Any]
Responses = AsyncGenerator[tuple[Tensors, bool], None]
# Each response waits some 0.4 ms for Triton's own threads; waiting side by side, 8 deliver several times what one does.
SENDERS = 8
OUTCOMES = ("started", "finished", "cancelled", "failed")


class Refusal(ValueError):
    """The request cannot be answered; the message goes to the client."""


class Engine:
    """Runs each request as a task, as the vLLM backend does: a slow reader delays nobody else.

    Counts on Triton's metrics port: `metric{model=…,outcome=started|finished|cancelled|failed}`.
    """

    def __init__(self, model: str, metric: str) -> None:
        self.model = model
        kind = pb_utils.MetricFamily.COUNTER
        # Metrics must go before their family does, so the family is kept.
        self._family = pb_utils.MetricFamily(name=metric, description="Requests by how they ended", kind=kind)
        self._counters = {
            outcome: self._family.Metric(labels={"model": model, "outcome": outcome}) for outcome in OUTCOMES
        }
        self._senders = ThreadPoolExecutor(SENDERS, "send")
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=model, daemon=True)
        self._thread.start()
        threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()

    def submit(self, request: Any, answer: Callable[[], Responses]) -> None:
        """Start answering `request` with what `answer` yields: (tensors, whether they are the last)."""
        sender = request.get_response_sender()
        self._loop.call_soon_threadsafe(self._begin, sender, answer)

    def close(self) -> None:
        """End every request that still runs, and the loop."""
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._senders.shutdown()
        self._counters.clear()

    def _begin(self, sender: Any, answer: Callable[[], Responses]) -> None:
        task = self._loop.create_task(self._serve(sender, answer))
        # The loop itself holds its tasks only weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, sender: Any, answer: Callable[[], Responses]) -> None:
        self._counters["started"].increment(1)
        outcome = "failed"
        try:
            outcome = await self._stream(sender, answer)
        except Refusal as refusal:
            self._fail(sender, str(refusal))
        except asyncio.CancelledError:
            self._fail(sender, "The model is being unloaded", pb_utils.TritonError.UNAVAILABLE)
            raise
        except Exception as error:
            pb_utils.Logger.log_error(f"[{self.model}] {error!r}")
            self._fail(sender, f"Error generating stream: {error}", pb_utils.TritonError.INTERNAL)
        finally:
            self._counters[outcome].increment(1)

    async def _stream(self, sender: Any, answer: Callable[[], Responses]) -> str:
        async with aclosing(answer()) as responses:
            async for tensors, last in responses:
                if await self._loop.run_in_executor(self._senders, _deliver, sender, tensors, last):
                    pb_utils.Logger.log_info(f"[{self.model}] cancelled")
                    self._fail(sender, "Request was cancelled", pb_utils.TritonError.CANCELLED)
                    return "cancelled"
        return "finished"

    def _fail(self, sender: Any, message: str, code: int | None = None) -> None:
        error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG if code is None else code)
        sender.send(pb_utils.InferenceResponse(error=error), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _deliver(sender: Any, tensors: Tensors, last: bool) -> bool:
    """Send one response, unless the request was cancelled: then return True."""
    if sender.is_cancelled():
        return True
    if tensors:
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        sender.send(pb_utils.InferenceResponse(tensors), flags)
    return False


def _leave_with(server: int) -> None:
    """End this process when the server has gone: one that is busy with requests would run on for minutes."""
    while os.getppid() == server:
        time.sleep(1)
    os._exit(1)
