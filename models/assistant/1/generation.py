"""From answers to tokens: exact spans of text, probabilities, max_tokens, stop strings, pace."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from retrieval import Choice, draw
from sampling import Sampling, StopWatch
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Token:
    """A token's id and the very characters that it stands for, the space before it included."""

    id: int
    text: str


@dataclass
class Output:
    """One of the n answers on its way. The `new_` fields are what the newest step added."""

    tokens: list[Token]
    rivals: list[tuple[list[Token], float]]
    watch: StopWatch
    count: int = 0
    new_count: int = 0
    new_text: str = ""
    new_logprobs: list[dict[str, dict[str, object]]] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    reason: str = ""


@lru_cache(maxsize=32)
def split(text: str, tokenizer: Tokenizer) -> list[Token]:
    """Cut a text into its tokens; the pieces joined are the text, whatever it holds."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ends: dict[int, int] = {}
    for token, (_, end) in zip(encoding.ids, encoding.offsets, strict=True):
        # Tokens that share their characters (a letter and its accent) are one piece.
        ends.setdefault(end, token)
    bounds = sorted(ends)
    if not bounds:
        return [Token(tokenizer.token_to_id("[UNK]"), text)] if text else []
    # What follows the last token, spaces mostly, belongs to it.
    spans = [*pairwise([0, *bounds[:-1]]), (bounds[-2] if len(bounds) > 1 else 0, len(text))]
    return [Token(ends[bound], text[start:end]) for bound, (start, end) in zip(bounds, spans, strict=True)]


def begin(choices: list[Choice], sampling: Sampling, tokenizer: Tokenizer) -> list[Output]:
    """Draw the n answers."""
    cut = [(split(choice.text, tokenizer), choice.weight) for choice in choices]
    outputs = []
    for index in range(sampling.n):
        chosen = draw(choices, sampling.seed, index)
        watch = StopWatch(sampling.stop, sampling.include_stop_str_in_output)
        outputs.append(Output(cut[chosen][0], [cut[chosen], *cut[:chosen], *cut[chosen + 1 :]], watch))
    return outputs


async def generate(outputs: list[Output], sampling: Sampling, pace: float) -> AsyncGenerator[bool, None]:
    """Advance every output by a token each `pace` seconds; yields whether all have ended."""
    clock = asyncio.get_running_loop().time
    due = clock()
    while True:
        for output in outputs:
            _advance(output, sampling)
        ended = all(output.reason for output in outputs)
        yield ended
        if ended:
            return
        due += pace
        # Under load a token comes late, and those after it are not hurried.
        due = max(due, clock())
        await asyncio.sleep(due - clock())


def _advance(output: Output, sampling: Sampling) -> None:
    output.new_count, output.new_text, output.new_logprobs = 0, "", []
    if output.reason:
        return
    token = _next(output, sampling)
    if token is None:
        output.reason = "stop"
        return
    at = output.count
    output.count += 1
    output.new_count = 1
    output.new_text = output.watch.feed(token.text, armed=output.count > sampling.min_tokens)
    entries = _probabilities(output, at, token)
    chosen = float(str(entries[0][1]))
    output.cumulative_logprob += chosen
    if sampling.logprobs is not None:
        output.new_logprobs = [_entry(entries, sampling.logprobs)]
    complete = output.count >= max(len(output.tokens), sampling.min_tokens) and not sampling.ignore_eos
    if output.watch.stopped or complete:
        output.reason = "stop"
    elif output.count >= sampling.max_tokens:
        output.reason = "length"
    if output.reason:
        output.new_text += output.watch.flush()


def _next(output: Output, sampling: Sampling) -> Token | None:
    """Return the next token; past the end, where more is demanded, the answer begins again on a new line."""
    tokens = output.tokens
    if output.count < len(tokens):
        return tokens[output.count]
    if not tokens or (output.count >= sampling.min_tokens and not sampling.ignore_eos):
        return None
    again = tokens[output.count % len(tokens)]
    return again if output.count % len(tokens) else Token(again.id, "\n" + again.text)


def _probabilities(output: Output, at: int, token: Token) -> list[tuple[Token, float]]:
    """Return the chosen token, then the other candidates' tokens at this place, with their log probabilities.

    The answers differ in their first token; after that, an answer once chosen is certain.
    """
    if at > 0:
        rest = [rival[at] for rival, _ in output.rivals[1:] if at < len(rival) and rival[at].id != token.id]
        unlikely = list({other.id: other for other in rest}.values())
        return [(token, 0.0), *((other, -9999.0) for other in unlikely)]
    shares: dict[int, float] = {}
    texts: dict[int, Token] = {}
    for rival, weight in output.rivals:
        if rival:
            shares[rival[0].id] = shares.get(rival[0].id, 0.0) + weight
            texts.setdefault(rival[0].id, rival[0])
    ranked = sorted(shares, key=lambda each: (each != token.id, -shares[each]))
    return [(texts[each], math.log(max(min(shares[each], 1.0), 1e-300))) for each in ranked]


def _entry(entries: list[tuple[Token, float]], most: int) -> dict[str, dict[str, object]]:
    order = sorted((logprob for _, logprob in entries), reverse=True)
    kept = [entries[0], *sorted(entries[1:], key=lambda entry: -entry[1])[: max(most - 1, 0)]]
    return {
        str(token.id): {"logprob": logprob, "rank": order.index(logprob) + 1, "decoded_token": token.text}
        for token, logprob in kept
    }


def logprobs_json(output: Output, sampling: Sampling) -> str:
    """Return the new tokens' log probabilities as the backend writes them: "null" when none were asked for."""
    return "null" if sampling.logprobs is None else json.dumps(output.new_logprobs)
