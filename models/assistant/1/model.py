"""The assistant behind the tensors of Triton's vLLM backend: reads a request, streams its responses."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parent))

from generation import Output, begin, generate, logprobs_json
from prompt import read_prompt
from reply import possible_answers
from retrieval import Library
from sampling import Sampling, read_sampling
from serving import Engine, Refusal, Responses, Tensors
from tensors import first, text, values


@dataclass
class Asked:
    """A request as its tensors state it."""

    prompt: str
    images: list[str]
    stream: bool
    prefix: str
    sampling: Sampling
    wants: dict[str, bool]
    prompt_tokens: int = 0
    outputs: list[Output] = field(default_factory=list)


class TritonPythonModel:
    """Many requests at once on one loop; what costs time before the first token runs beside it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Embed the passages and start the loop."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.pace = float(os.environ.get("ASSISTANT_PACE_MS") or parameters["pace_ms"]["string_value"]) / 1000
        self.context = int(parameters["context"]["string_value"])
        self.library = Library()
        self.workers = ThreadPoolExecutor(2, "prepare")
        self.engine = Engine(args["model_name"], "conch_assistant_requests_total")

    def execute(self, requests: list[Any]) -> None:
        """Take the requests; the responses come from the loop."""
        for request in requests:
            self.engine.submit(request, lambda request=request: self._answer(request))

    def finalize(self) -> None:
        """End what still runs."""
        self.engine.close()
        self.workers.shutdown()

    async def _answer(self, request: Any) -> Responses:
        asked = _read(request)
        # The client may have gone while this waited its turn.
        yield [], False
        await asyncio.get_running_loop().run_in_executor(self.workers, self._prepare, asked)
        yield [], False
        said = [asked.prefix] * len(asked.outputs)
        counts = [0] * len(asked.outputs)
        entries: list[list[Any]] = [[] for _ in asked.outputs]
        async for ended in generate(asked.outputs, asked.sampling, self.pace):
            if asked.stream:
                yield _streamed(asked), ended
                continue
            for index, output in enumerate(asked.outputs):
                said[index] += output.new_text
                counts[index] += output.new_count
                entries[index] += output.new_logprobs
            yield (_whole(asked, said, counts, entries), True) if ended else ([], False)

    def _prepare(self, asked: Asked) -> None:
        asked.prompt_tokens = len(self.library.tokenizer.encode(asked.prompt, add_special_tokens=False).ids)
        if asked.prompt_tokens >= self.context:
            length = (
                f"The prompt (length {asked.prompt_tokens}) is longer than the maximum model length of {self.context}"
            )
            raise Refusal(f"Error generating stream: {length}.")
        asked.sampling.max_tokens = min(asked.sampling.max_tokens, self.context - asked.prompt_tokens)
        choices = possible_answers(read_prompt(asked.prompt), asked.images, asked.sampling, self.library)
        asked.outputs = begin(choices, asked.sampling, self.library.tokenizer)


def _read(request: Any) -> Asked:
    if values(request, "embedding_request") is not None:
        raise Refusal("Model assistant does not support 'embed' request")
    prompt = first(request, "text_input")
    if prompt is None:
        raise Refusal("Error generating stream: text_input is missing")
    stream = bool(first(request, "stream", False))
    exclude = bool(first(request, "exclude_input_in_output", stream))
    if stream and not exclude:
        raise Refusal("Error generating stream: When streaming, `exclude_input_in_output` = False is not allowed.")
    given = first(request, "sampling_parameters")
    names = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")
    return Asked(
        prompt=prompt,
        images=values(request, "image") or [],
        stream=stream,
        prefix="" if exclude else prompt,
        sampling=read_sampling(request.parameters() if given is None else given),
        wants={name: bool(first(request, f"return_{name}", False)) for name in names},
    )


def _streamed(asked: Asked) -> Tensors:
    outputs = asked.outputs
    logprobs = [logprobs_json(output, asked.sampling) for output in outputs]
    said = [output.new_text for output in outputs]
    return _tensors(asked, said, [output.new_count for output in outputs], logprobs)


def _whole(asked: Asked, said: list[str], counts: list[int], entries: list[list[Any]]) -> Tensors:
    none = asked.sampling.logprobs is None
    return _tensors(asked, said, counts, ["null" if none else json.dumps(each) for each in entries])


def _tensors(asked: Asked, said: list[str], counts: list[int], logprobs: list[str]) -> Tensors:
    outputs, wants = asked.outputs, asked.wants
    tensors = [text("text_output", said)]
    if wants["finish_reason"]:
        tensors.append(text("finish_reason", [output.reason or "None" for output in outputs]))
    if wants["cumulative_logprob"]:
        sums = np.array([output.cumulative_logprob for output in outputs], np.float32)
        tensors.append(pb_utils.Tensor("cumulative_logprob", sums))
    if wants["logprobs"]:
        tensors.append(text("logprobs", logprobs))
    if wants["num_input_tokens"]:
        tensors.append(pb_utils.Tensor("num_input_tokens", np.array([asked.prompt_tokens], np.uint32)))
    if wants["num_output_tokens"]:
        tensors.append(pb_utils.Tensor("num_output_tokens", np.array(counts, np.uint32)))
    return tensors
