"""One deterministic model behind the tensors of four published LLM repositories, for tests of the profiles.

What it says stands in its prompt, whatever template surrounds it; the last of these counts:

    echo:            what it received, as JSON: {"tensors": {name: {"shape": [...], "data": [...]}}, "parameters": {}}
    script: {JSON}   {"pieces": ["to", "kens"], "pace_ms": 0, "wait_ms": 0, "fail_after": null, "message": "..."}:
                     says the pieces, one token each, after wait_ms, pace_ms apart; with fail_after = n it fails with
                     the message after n responses; a piece "\\udcc3" is a byte (C3) of a character cut in two, for
                     the models whose text is cumulative
    anything else    "Hello, wörld: 你好 🙂."

A script obeys max_tokens and stop words; an echo is said whole. Requests are counted on the metrics port as
conch_contract_requests_total{model, outcome}.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "models" / "assistant" / "1"))

from serving import Engine, Refusal, Responses, Tensors
from tensors import first, text, values

GREETING = ["Hello", ",", " wörld", ":", " 你", "好", " 🙂", "."]


@dataclass
class Script:
    """What to say, and how."""

    pieces: list[str]
    pace_ms: float = 0.0
    wait_ms: float = 0.0
    fail_after: int | None = None
    message: str = "the script fails here"
    obeys: bool = True


@dataclass
class Progress:
    """What has been said so far. `shown` is the newest piece, `reason` empty until the end."""

    prompt: str
    prompt_tokens: int
    pieces: list[str] = field(default_factory=list)
    shown: str = ""
    reason: str = ""
    stop: str = ""

    @property
    def text(self) -> str:
        """What a detokenizer makes of it: half a character is U+FFFD until its other half comes."""
        return "".join(self.pieces).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class Contract:
    """The shared half: reading, saying, stopping, failing. A subclass names its tensors and shapes its responses."""

    stream = "stream"
    max_tokens = "max_tokens"
    stop = "stop_words"
    exclude = "exclude_input_in_output"
    keeps_stop: ClassVar[bool] = True

    def initialize(self, args: dict[str, str]) -> None:
        """Start the loop that the requests run on."""
        self.inputs = [entry["name"] for entry in json.loads(args["model_config"])["input"]]
        self.engine = Engine(args["model_name"], "conch_contract_requests_total")

    def execute(self, requests: list[Any]) -> None:
        """Take the requests; the responses come from the loop."""
        for request in requests:
            self.engine.submit(request, lambda request=request: self._answer(request))

    def finalize(self) -> None:
        """End what still runs."""
        self.engine.close()

    def respond(self, request: Any, progress: Progress, streaming: bool) -> Tensors:
        """Return the tensors of one response: a streamed one, or the only one."""
        raise NotImplementedError

    async def _answer(self, request: Any) -> Responses:
        prompt = first(request, "text_input")
        if prompt is None:
            raise Refusal("text_input is missing from the request")
        streaming = bool(first(request, self.stream, False))
        script = self._script(request, prompt)
        progress = Progress(prompt, len(prompt.split()))
        async for _ in self._say(request, script, progress):
            if streaming:
                yield self.respond(request, progress, True), bool(progress.reason)
            elif progress.reason:
                yield self.respond(request, progress, False), True
            else:
                # A turn for the engine to look whether the client has gone.
                yield [], False

    async def _say(self, request: Any, script: Script, progress: Progress) -> AsyncGenerator[None, None]:
        pieces = script.pieces
        if script.obeys:
            pieces = pieces[: self._limit(request)]
        stops = self._stops(request) if script.obeys else []
        await asyncio.sleep(script.wait_ms / 1000)
        for index, piece in enumerate(pieces):
            if script.fail_after == index:
                raise Refusal(script.message)
            progress.pieces.append(piece)
            progress.shown = piece
            if len(progress.pieces) == len(script.pieces):
                progress.reason = "stop"
            elif len(progress.pieces) == len(pieces):
                progress.reason = "length"
            self._stop_at(stops, progress)
            yield
            if progress.reason:
                return
            await asyncio.sleep(script.pace_ms / 1000)
        if script.fail_after is not None:
            raise Refusal(script.message)

    def _stop_at(self, stops: list[str], progress: Progress) -> None:
        found = [(progress.text.find(stop), stop) for stop in stops if stop in progress.text]
        if not found:
            return
        start, stop = min(found)
        progress.stop, progress.reason = stop, "stop"
        said = progress.text[: start + len(stop) if self.keeps_stop else start]
        before = "".join(progress.pieces[:-1])
        progress.shown = said[len(before) :]
        progress.pieces[-1] = progress.shown

    def _limit(self, request: Any) -> int:
        return int(first(request, self.max_tokens, 16))

    def _stops(self, request: Any) -> list[str]:
        return values(request, self.stop) or []

    def _script(self, request: Any, prompt: str) -> Script:
        found = list(re.finditer(r"\b(echo|script):", prompt))
        if not found:
            return Script(GREETING)
        if found[-1][1] == "echo":
            received = json.dumps(self._received(request), ensure_ascii=False)
            return Script([received[start : start + 24] for start in range(0, len(received), 24)], obeys=False)
        rest = prompt[found[-1].end() :].lstrip()
        return Script(**json.JSONDecoder().raw_decode(rest)[0])

    def _received(self, request: Any) -> dict[str, Any]:
        tensors = {}
        for name in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                tensors[name] = {"shape": list(tensor.as_numpy().shape), "data": values(request, name)}
        return {"tensors": tensors, "parameters": json.loads(request.parameters())}

    def _prefix(self, request: Any, progress: Progress) -> str:
        return "" if first(request, self.exclude, False) else progress.prompt


class Vllm(Contract):
    """Text and output tokens count what is new in each response, which has all of its n choices."""

    keeps_stop = False

    def respond(self, request: Any, progress: Progress, streaming: bool) -> Tensors:
        said = progress.shown if streaming else self._prefix(request, progress) + progress.text
        n = self._sampling(request).get("n") or 1
        tensors = [text("text_output", [said] * n)]
        if first(request, "return_finish_reason"):
            tensors.append(text("finish_reason", [progress.reason or "None"] * n))
        if first(request, "return_num_input_tokens"):
            tensors.append(pb_utils.Tensor("num_input_tokens", np.array([progress.prompt_tokens], np.uint32)))
        if first(request, "return_num_output_tokens"):
            count = 1 if streaming else len(progress.pieces)
            tensors.append(pb_utils.Tensor("num_output_tokens", np.array([count] * n, np.uint32)))
        return tensors

    def _limit(self, request: Any) -> int:
        return int(self._sampling(request).get("max_tokens") or 16)

    def _stops(self, request: Any) -> list[str]:
        stop = self._sampling(request).get("stop") or []
        return [stop] if isinstance(stop, str) else stop

    def _sampling(self, request: Any) -> dict[str, Any]:
        sampling: dict[str, Any] = json.loads(first(request, "sampling_parameters") or request.parameters())
        return sampling


class VllmEmbed(Contract):
    """One input per request: its vector is its length, then its bytes or token ids, cut or padded to `dimensions`."""

    async def _answer(self, request: Any) -> Responses:
        asked = first(request, "embedding_request")
        if asked is None:
            raise Refusal("Model vllm_embed does not support 'generate' request")
        wanted = json.loads(asked)
        given = wanted["input"]
        spelt = list(given.encode()) if isinstance(given, str) else given
        size = ((wanted.get("pooling_params") or {}).get("dimensions") or [32])[0]
        vector = ([len(spelt), *spelt] + [0] * size)[:size]
        tensors = [text("text_output", [json.dumps([float(number) for number in vector])])]
        if first(request, "return_num_input_tokens"):
            tensors.append(pb_utils.Tensor("num_input_tokens", np.array([len(spelt)], np.uint32)))
        yield tensors, True


class Ensemble(Contract):
    """Output tokens count what is new in each response, when asked for; log probabilities and indices always come."""

    cumulative: ClassVar[bool] = False

    def respond(self, request: Any, progress: Progress, streaming: bool) -> Tensors:
        said = progress.text if self.cumulative or not streaming else progress.shown
        if not streaming:
            said = self._prefix(request, progress) + said
        tensors = [
            pb_utils.Tensor("text_output", np.array([[said.encode()]], np.object_)),
            pb_utils.Tensor("cum_log_probs", np.zeros((1, 1), np.float32)),
            pb_utils.Tensor("output_log_probs", np.zeros((1, 1, 1), np.float32)),
            pb_utils.Tensor("batch_index", np.zeros((1, 1), np.int32)),
            pb_utils.Tensor("sequence_index", np.zeros((1, 1), np.int32)),
        ]
        new = 1 if streaming else len(progress.pieces)
        for name, count in (("num_input_tokens", progress.prompt_tokens), ("num_output_tokens", new)):
            if first(request, f"return_{name}"):
                tensors.append(pb_utils.Tensor(name, np.array([[count]], np.int32)))
        return tensors


class Accumulated(Ensemble):
    """Each response repeats the text so far."""

    cumulative = True


class LlmApi(Contract):
    """Cumulative text behind the prompt, unless that is excluded, also in a stream."""

    stream = "streaming"
    max_tokens = "sampling_param_max_tokens"
    stop = "sampling_param_stop"
    exclude = "sampling_param_exclude_input_from_output"
    keeps_stop = False

    def respond(self, request: Any, progress: Progress, streaming: bool) -> Tensors:
        tensors = [text("text_output", [self._prefix(request, progress) + progress.text])]
        fields = (("finish_reason", progress.reason), ("stop_reason", progress.stop), ("cumulative_logprob", "0.0"))
        for name, value in fields:
            if first(request, f"return_{name}"):
                # Strings all three, the logprob too, though it is declared FP32.
                tensors.append(text(name, [value or "None"]))
        return tensors
