"""What the assistant says: the possible answers to a prompt, each with its share of the probability."""

from __future__ import annotations

import json
import re
from typing import Any

from findings import Findings
from images import describe
from instance import Instance
from pattern import example, find
from prompt import Conversation
from retrieval import Choice, Library
from sampling import Sampling
from serving import Refusal
from toolchoice import choose_calls, say_calls

REPEAT = re.compile(r"\brepeat after me:\s*(.*)", re.IGNORECASE | re.DOTALL)
COUNT = re.compile(r"\bcount (?:from (\d+) )?to (\d+)\b", re.IGNORECASE)
FURTHEST = 10_000
MOST_CHOICES = 100
# What of a question is looked up: the encoder reads 256 tokens anyway.
READ = 2000


def possible_answers(talk: Conversation, images: list[str], sampling: Sampling, library: Library) -> list[Choice]:
    """Return the answers among which the sampling draws; Refusal for a constraint that cannot be met."""
    question = talk.question[:READ]
    seen = describe(images)
    if sampling.structured_outputs:
        choices = [Choice(_constrained(sampling.structured_outputs, talk, library), 1.0)]
    else:
        choices = _free(talk, question, sampling, library)
        choices = [Choice(f"{seen} {choice.text}".strip(), choice.weight) for choice in choices]
    if not talk.thinks:
        return choices
    return [Choice(_thought(talk, choice.text), choice.weight) for choice in choices]


def _free(talk: Conversation, question: str, sampling: Sampling, library: Library) -> list[Choice]:
    repeat = REPEAT.search(talk.question)
    if repeat:
        return [Choice(repeat[1], 1.0)]
    count = COUNT.search(question)
    if count:
        first, last = int(count[1] or 1), int(count[2])
        return [Choice(", ".join(map(str, range(first, min(last, FURTHEST) + 1))), 1.0)]
    if talk.results:
        return [Choice(" ".join(_told(name, result) for name, result in talk.results), 1.0)]
    calls = choose_calls(question, talk.tools, library) if talk.tools else []
    if calls:
        return [Choice(say_calls(calls), 1.0)]
    return library.answers(question, sampling)


def _thought(talk: Conversation, answer: str) -> str:
    opening = "" if talk.opened else "<think>\n"
    kind = "call a tool" if answer.startswith("<tool_call>") else "say what stands nearest to the question"
    return f"{opening}The question is: {talk.question[:120]!r}. I will {kind}.\n</think>\n\n{answer}"


def _told(name: str, result: str) -> str:
    try:
        said = _plain(json.loads(result))
    except json.JSONDecodeError:
        said = result.strip()
    return f"{name} says: {said.rstrip('.')}."


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value)


def _constrained(constraint: dict[str, Any], talk: Conversation, library: Library) -> str:
    question = talk.question
    if constraint.get("choice") is not None:
        return _chosen(constraint["choice"], question, library)
    if constraint.get("regex") is not None:
        pattern = str(constraint["regex"])
        return find(f"^(?:{pattern})$", question) or example(f"^(?:{pattern})$")
    if constraint.get("json") is not None:
        schema = constraint["json"]
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
        except (ValueError, RecursionError) as error:
            raise Refusal(f"Error generating stream: structured_outputs: not a JSON schema: {error}") from None
        spare = question.split("\n")[0][:60] or "nothing"
        schema = _decided(schema, talk, library) if talk.tools else schema
        said = "\n".join([question, *(result for _, result in talk.results)])
        return json.dumps(Instance(schema, Findings(said), spare).build(), ensure_ascii=False)
    if constraint.get("json_object"):
        answer = library.answers(question[:READ], Sampling(temperature=0))[0].text
        return json.dumps({"answer": answer}, ensure_ascii=False)
    raise Refusal("Error generating stream: this model knows json, regex, choice and json_object, no grammars")


def _decided(schema: Any, talk: Conversation, library: Library) -> Any:
    """A schema that leaves open whether, and what, to call, without the alternatives that this model would not take."""
    calls = [] if talk.results else choose_calls(talk.question[:READ], talk.tools, library)
    named = [json.dumps({"const": str(tool["name"])})[1:-1] for tool in talk.tools]
    try:
        if calls:
            return _toward(schema, json.dumps({"const": calls[0][0]})[1:-1])
        options = schema.get("anyOf") if isinstance(schema, dict) else None
        if not isinstance(options, list):
            return schema
        silent = [option for option in options if not any(name in json.dumps(option) for name in named)]
        return schema | {"anyOf": silent or options}
    except RecursionError:
        raise Refusal("Error generating stream: structured_outputs: the JSON schema is too deep") from None


def _toward(schema: Any, said: str) -> Any:
    """A schema whose alternatives are those that say this, wherever there are such."""
    if isinstance(schema, list):
        return [_toward(each, said) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _toward(value, said) for key, value in schema.items()}
    if isinstance(kept.get("anyOf"), list):
        kept["anyOf"] = [each for each in kept["anyOf"] if said in json.dumps(each)] or kept["anyOf"]
    return kept


def _chosen(options: list[str], question: str, library: Library) -> str:
    strings = isinstance(options, list) and all(isinstance(option, str) for option in options)
    if not strings or not 1 <= len(options) <= MOST_CHOICES:
        raise Refusal(f"Error generating stream: structured_outputs: choice must be 1 to {MOST_CHOICES} strings")
    named = [option for option in options if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", question, re.IGNORECASE)]
    return named[0] if named else max(options, key=lambda option: library.similarity(option, question[:READ]))
