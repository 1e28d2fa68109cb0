"""Reading a rendered prompt back into a conversation: ChatML turns, Hermes tools and results, images, thinking."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.DOTALL)
CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)


@dataclass
class Conversation:
    """What of a prompt this model acts on."""

    question: str
    tools: list[dict[str, Any]] = field(default_factory=list)
    results: list[tuple[str, str]] = field(default_factory=list)
    thinks: bool = False
    # The template has opened <think> already, so the answer only closes it.
    opened: bool = False


def read_prompt(prompt: str) -> Conversation:
    """Return the conversation; a prompt that is not ChatML is one question."""
    turns = TURN.findall(prompt)
    if not turns:
        question, asked = _clean(prompt)
        return Conversation(question, thinks=asked)
    started = turns.pop()[1] if turns[-1][0] == "assistant" and not prompt.rstrip().endswith("<|im_end|>") else ""
    asked_turns = [text for role, text in turns if role == "user" and not RESULT.search(text)]
    question, asked = _clean(asked_turns[-1] if asked_turns else "")
    opened = started.rstrip().endswith("<think>")
    forbidden = "</think>" in started
    tools = _read_tools(next((text for role, text in turns if role == "system"), ""))
    return Conversation(question, tools, _read_results(turns), opened or (asked and not forbidden), opened)


def _clean(text: str) -> tuple[str, bool]:
    words = re.sub(r"<image>", " ", text)
    bare = re.sub(r"(^|\s)/(no_)?think(?=\s|$)", " ", words)
    return bare.strip(), bool(re.search(r"(^|\s)/think(\s|$)", words))


def _read_tools(system: str) -> list[dict[str, Any]]:
    found = TOOLS.search(system)
    tools = []
    for line in found[1].splitlines() if found else []:
        try:
            tool = json.loads(line)
        except json.JSONDecodeError:
            continue
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            tools.append(function)
    return tools


def _read_results(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return (tool, what it returned) for the results that end the conversation."""
    last = turns[-1] if turns else ("", "")
    if last[0] == "tool":
        results = [last[1].strip()]
    else:
        results = RESULT.findall(last[1]) if last[0] == "user" else []
    names = []
    for role, text in turns:
        calls = CALL.findall(text) if role == "assistant" else []
        names = [_name(call) for call in calls] or names
    names += ["The tool"] * len(results)
    return list(zip(names, results, strict=False))


def _name(call: str) -> str:
    try:
        return str(json.loads(call)["name"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return "The tool"
