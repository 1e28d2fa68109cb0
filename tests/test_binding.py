"""Bindings as tables, without a server: profile × live contract → request body; payloads → deltas, finish and usage."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import Model
from upstream.contract import NotBound, read_contract
from upstream.errors import ModelFailed, Unsupported
from upstream.inference import Delta, Generation, Usage
from upstream.text import Reader, TextBinding

Table = dict[str, Any]
OUT: Table = {"text": "text_output"}


def tensor(name: str, kind: str = "STRING", dims: tuple[int, ...] = (1,), optional: bool = True) -> Table:
    """An entry of a /config document, as Triton writes it."""
    return {"name": name, "data_type": f"TYPE_{kind}", "dims": dims, "optional": optional}


LIVE = (
    tensor("text_input", optional=False),
    tensor("stream", "BOOL"),
    tensor("max_tokens", "INT32"),
    tensor("temperature", "FP32"),
    tensor("seed", "UINT64"),
    tensor("stop_words", dims=(-1,)),
    tensor("one_stop"),
    tensor("sampling"),
    tensor("guide"),
)
SAID = (tensor("text_output", dims=(-1,)), tensor("finish_reason"), tensor("n_in", "INT32"), tensor("n_out", "INT32"))


def bind(inputs: Table, outputs: Table = OUT, live: tuple[Table, ...] = LIVE) -> TextBinding:
    """A binding of the profile that conch.toml would hold, to the configuration that Triton would report."""
    given = {"id": "m", "task": "chat", "upstream": "u", "model": "m", "in": inputs, "out": outputs}
    contract = {"name": "m", "max_batch_size": 0, "input": live, "output": SAID}
    return TextBinding(msgspec.convert(given, Model), read_contract(json.dumps(contract).encode()))


def body(binding: TextBinding, **fields: Any) -> Table:
    """What is sent for a prompt of "hi" and these fields."""
    sent: Table = json.loads(binding.encode(Generation("hi", **fields)))
    return sent


PROMPT = {"text_input": "prompt"}
BODIES: list[tuple[str, Table, Table, Table]] = [
    ("a source that was not asked for", {"temperature": "temperature"}, {}, {}),
    ("a source", {"temperature": "temperature"}, {"temperature": 0.5}, {"temperature": 0.5}),
    ("zero is a value", {"temperature": "temperature"}, {"temperature": 0}, {"temperature": 0.0}),
    ("stream is always sent", {"stream": "stream"}, {}, {"stream": False}),
    ("const", {"max_tokens": {"const": 7}}, {"max_tokens": 9}, {"max_tokens": 7}),
    ("a const of false", {"stream": {"const": False}}, {"stream": True}, {"stream": False}),
    ("default", {"max_tokens": {"from": "max_tokens", "default": 16}}, {}, {"max_tokens": 16}),
    ("over the default", {"max_tokens": {"from": "max_tokens", "default": 16}}, {"max_tokens": 3}, {"max_tokens": 3}),
    ("scale", {"max_tokens": {"from": "top_p", "scale": 100.0}}, {"top_p": 0.25}, {"max_tokens": 25}),
    ("map", {"guide": {"from": "extra.mode", "map": {"a": "alpha"}}}, {"extra": {"mode": "a"}}, {"guide": "alpha"}),
    ("several values", {"stop_words": "stop"}, {"stop": ["a", "b"]}, {"stop_words": ["a", "b"]}),
    ("one value of a list", {"one_stop": "stop"}, {"stop": ["a"]}, {"one_stop": "a"}),
    ("a whole float for an integer", {"max_tokens": "extra.m"}, {"extra": {"m": 3.0}}, {"max_tokens": 3}),
    ("the largest UINT64", {"seed": "extra.s"}, {"extra": {"s": 2**64 - 1}}, {"seed": 2**64 - 1}),
    ("an extra", {"guide": "extra.g"}, {"extra": {"g": "x"}}, {"guide": "x"}),
    ("a tensor that the model lacks", {"nowhere": "seed"}, {"seed": 1}, {}),
    ("a tensor taken out of its preset", {"seed": False}, {"seed": 1}, {}),
    ("a parameter", {"lora": {"from": "extra.lora", "param": True}}, {"extra": {"lora": "x"}}, {"lora": "x"}),
    ("a constant parameter", {"lora": {"const": "x", "param": True}}, {}, {"lora": "x"}),
    (
        "template",
        {"guide": {"template": "<{temperature}|{extra.lang}|{seed}>"}},
        {"temperature": 0, "extra": {"lang": "{de}"}},
        {"guide": "<0|{de}|>"},
    ),
]


@pytest.mark.parametrize(("inputs", "fields", "sent"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_request_body(inputs: Table, fields: Table, sent: Table) -> None:
    assert body(bind(PROMPT | inputs), **fields) == {"text_input": "hi"} | sent


def test_json_tensor() -> None:
    keys = {
        "max_tokens": {"from": "max_tokens", "default": 1024},
        "stop": "stop",
        "logit_bias": "logit_bias",
        "seed": "seed",
        "skip_special_tokens": {"const": False},
        "effort": {"from": "extra.effort", "map": {"low": 1, "high": 9}},
    }
    binding = bind(PROMPT | {"sampling": {"json": keys}})
    assert json.loads(body(binding)["sampling"]) == {"max_tokens": 1024, "skip_special_tokens": False}
    full = body(binding, max_tokens=2, stop=["ü"], seed=-1, logit_bias={"5": 2.0}, extra={"effort": "high"})
    assert json.loads(full["sampling"]) == {
        "max_tokens": 2,
        "stop": ["ü"],
        "seed": -1,
        "logit_bias": {"5": 2.0},
        "skip_special_tokens": False,
        "effort": 9,
    }


def test_sources_are_what_reaches_the_model() -> None:
    binding = bind(PROMPT | {"seed": "seed", "nowhere": "top_k", "sampling": {"json": {"x": "extra.x", "p": "min_p"}}})
    assert binding.sources == {"prompt", "seed", "extra.x", "min_p"}
    assert binding.left_out == ["nowhere"]


REFUSED: list[tuple[str, Table, Table, str, str]] = [
    ("a negative UINT64", {"seed": "seed"}, {"seed": -1}, "seed", "from 0 to 18446744073709551615"),
    ("over INT32", {"max_tokens": "max_tokens"}, {"max_tokens": 2**31}, "max_tokens", "to 2147483647"),
    ("a fraction", {"max_tokens": "extra.m"}, {"extra": {"m": 1.5}}, "extra.m", "whole numbers"),
    ("text for an integer", {"max_tokens": "extra.m"}, {"extra": {"m": "5"}}, "extra.m", "whole numbers"),
    ("a bool for an integer", {"max_tokens": "extra.m"}, {"extra": {"m": True}}, "extra.m", "whole numbers"),
    ("text for a float", {"temperature": "extra.t"}, {"extra": {"t": "hot"}}, "extra.t", "numbers"),
    ("over FP32", {"temperature": "extra.t"}, {"extra": {"t": 1e39}}, "extra.t", "numbers"),
    ("a number for a bool", {"stream": "extra.s"}, {"extra": {"s": 1}}, "extra.s", "true or false"),
    ("an object for text", {"guide": "extra.g"}, {"extra": {"g": {"a": 1}}}, "extra.g", "text"),
    ("two values for one", {"one_stop": "stop"}, {"stop": ["a", "b"]}, "stop", "one value, not 2"),
    ("off the map", {"guide": {"from": "extra.m", "map": {"a": "b"}}}, {"extra": {"m": "c"}}, "extra.m", "one of: a"),
    ("a list parameter", {"p": {"from": "extra.p", "param": True}}, {"extra": {"p": [1]}}, "extra.p", "one text"),
]


@pytest.mark.parametrize(
    ("inputs", "fields", "source", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_value_that_does_not_fit_is_refused(inputs: Table, fields: Table, source: str, says: str) -> None:
    with pytest.raises(Unsupported, match=says) as refusal:
        body(bind(PROMPT | inputs), **fields)
    assert refusal.value.source == source


NEEDY = (*LIVE, tensor("need", "INT32", optional=False))
UNBOUND: list[tuple[str, Table, Table, tuple[Table, ...], str]] = [
    ("required, unfilled", PROMPT, OUT, NEEDY, r"requires 'need' \(INT32\)"),
    ("required, taken out", PROMPT | {"need": False}, OUT, NEEDY, "requires 'need'"),
    ("required, not in every request", PROMPT | {"need": "seed"}, OUT, NEEDY, "not every request has 'seed'"),
    ("required, without a default", PROMPT | {"need": {"from": "seed"}}, OUT, NEEDY, "'need': give it a default"),
    ("no prompt", {}, OUT, LIVE, "requires 'text_input'"),
    ("an unknown source", PROMPT | {"seed": "sead"}, OUT, LIVE, "no source 'sead'"),
    ("an unknown source in JSON", PROMPT | {"sampling": {"json": {"a": "sead"}}}, OUT, LIVE, "'sampling.a'"),
    ("an unknown source in a template", PROMPT | {"guide": {"template": "{sead}"}}, OUT, LIVE, "no source 'sead'"),
    ("a default that does not fit", PROMPT | {"seed": {"from": "seed", "default": -1}}, OUT, LIVE, "'seed' .* -1"),
    ("a constant that does not fit", PROMPT | {"stream": {"const": "yes"}}, OUT, LIVE, "'stream' .* 'yes'"),
    ("a dtype without JSON", PROMPT | {"half": "seed"}, OUT, (*LIVE, tensor("half", "FP16")), "'half' is FP16"),
    ("no text", PROMPT, {"finish": "finish_reason"}, LIVE, "no tensor for text"),
    ("another text", PROMPT, {"text": "TEXT"}, LIVE, "no output 'TEXT'; it has: finish_reason, n_in"),
]


@pytest.mark.parametrize(
    ("inputs", "outputs", "live", "says"), [row[1:] for row in UNBOUND], ids=[row[0] for row in UNBOUND]
)
def test_a_profile_that_does_not_fit_is_not_bound(
    inputs: Table, outputs: Table, live: tuple[Table, ...], says: str
) -> None:
    with pytest.raises(NotBound, match=says):
        bind(inputs, outputs, live)


def test_a_required_tensor_is_filled_by_a_constant_a_default_or_json() -> None:
    for entry in ({"const": 1}, {"from": "seed", "default": 1}):
        assert body(bind(PROMPT | {"need": entry}, live=NEEDY))["need"] == 1
    needs_text = (*LIVE, tensor("need", optional=False))
    assert body(bind(PROMPT | {"need": {"json": {"a": "seed"}}}, live=needs_text))["need"] == "{}"


def reader(outputs: Table, inputs: Table | None = None, **fields: Any) -> Reader:
    """A reader for the answer to a request with these fields."""
    return bind(PROMPT | (inputs or {}), outputs).reader(Generation("hi", **fields))


def read(reader: Reader, *payloads: Table) -> list[Delta]:
    """The deltas of payloads that arrive one by one, and those at the end."""
    deltas = [delta for payload in payloads for delta in reader.read([json.dumps(payload).encode()])]
    return deltas + reader.end()


FINISH = {"text": "text_output", "finish": {"tensor": "finish_reason", "unset": ["None", ""]}}
INFER = {"text": "text_output", "finish": "infer", "completion_tokens": "n_out"}
WHOLE = {"text": {"tensor": "text_output", "mode": "cumulative"}}
TRIM = {"text": {"tensor": "text_output", "trim_stop": True}}


def test_deltas_until_the_model_says_that_it_has_finished() -> None:
    events: list[Table] = [
        {"text_output": "a", "finish_reason": "None", "more": [1, 2]},
        {"text_output": "", "finish_reason": ""},
        {"text_output": ["b"], "finish_reason": ["length"]},
    ]
    assert read(reader(FINISH), *events) == [Delta("a"), Delta("b", "length")]


def test_what_follows_the_finish_does_not_undo_it() -> None:
    events = [{"text_output": "a", "finish_reason": "stop"}, {"text_output": "", "finish_reason": "None"}]
    assert read(reader(FINISH), *events) == [Delta("a", "stop")]


def test_an_answer_that_ends_without_its_finish_is_a_failure() -> None:
    with pytest.raises(ModelFailed, match="without a finish reason"):
        read(reader(FINISH), {"text_output": "a", "finish_reason": "None"})


@pytest.mark.parametrize("word", ["abort", "cancelled", "timeout", "error"])
def test_a_request_that_the_engine_gave_up_is_a_failure(word: str) -> None:
    with pytest.raises(ModelFailed, match=word):
        read(reader(FINISH), {"text_output": "a", "finish_reason": word})


@pytest.mark.parametrize("payload", [b'{"error": "out of memory"}', b'{"text_output": "a", "error": "out of memory"}'])
def test_an_error_in_a_payload_is_a_failure(payload: bytes) -> None:
    with pytest.raises(ModelFailed, match="out of memory"):
        reader(FINISH).read([payload])


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"text_output": "\xff"}'])
def test_a_payload_that_is_not_the_expected_json_is_a_failure(payload: bytes) -> None:
    with pytest.raises(ModelFailed, match="not the expected JSON"):
        reader(FINISH).read([payload])


@pytest.mark.parametrize(
    ("fields", "inputs", "tokens", "finish"),
    [
        ({"max_tokens": 3}, {}, [1, 1, 1], "length"),
        ({"max_tokens": 4}, {}, [1, 1, 1], "stop"),
        ({}, {"max_tokens": {"from": "max_tokens", "default": 2}}, [1, 1], "length"),
        ({}, {"sampling": {"json": {"max_tokens": {"from": "max_tokens", "default": 2}}}}, [2], "length"),
        ({}, {}, [5], "stop"),
        ({"max_tokens": 1}, {}, [], "stop"),
    ],
)
def test_a_finish_that_is_inferred(fields: Table, inputs: Table, tokens: list[int], finish: str) -> None:
    events = [{"text_output": "x", "n_out": count} for count in tokens]
    assert read(reader(INFER, inputs, **fields), *events)[-1] == Delta("", finish)


def test_a_stop_word_tells_the_finish_even_at_the_last_token() -> None:
    trimmed = reader(INFER | TRIM, stop=["STOP"], max_tokens=2)
    events = [{"text_output": "a ST", "n_out": 1}, {"text_output": "OP", "n_out": 1}]
    assert read(trimmed, *events) == [Delta("a "), Delta("", "stop")]


def test_text_held_for_a_stop_word_that_does_not_come_is_given_at_the_end() -> None:
    assert read(reader(TRIM, stop=["STOP"]), {"text_output": "a ST"}) == [Delta("a "), Delta("ST", "stop")]
    finished = {"text": TRIM["text"], "finish": "finish_reason"}
    event = {"text_output": "a ST", "finish_reason": "length"}
    assert read(reader(finished, stop=["STOP"]), event) == [Delta("a ST", "length")]


@pytest.mark.parametrize(
    ("counts", "events", "usage"),
    [
        ({"prompt_tokens": "n_in", "completion_tokens": "n_out"}, [(7, 1), (7, 2)], Usage(7, 3)),
        ({"completion_tokens": {"tensor": "n_out", "mode": "delta"}}, [(7, 1), (7, 2)], Usage(None, 3)),
        ({"completion_tokens": {"tensor": "n_out", "mode": "total"}}, [(7, 1), (7, 2)], Usage(None, 2)),
        ({"prompt_tokens": "n_in", "completion_tokens": "n_out"}, [([7], [1, 1])], Usage(7, 2)),
        ({"prompt_tokens": "n_in", "completion_tokens": "n_out"}, [(None, None)], Usage(None, None)),
        ({"prompt_tokens": "not_there"}, [(7, 1)], Usage(None, None)),
    ],
)
def test_usage_is_what_the_model_counted(counts: Table, events: list[tuple[Any, Any]], usage: Usage) -> None:
    counted = reader({"text": "text_output"} | counts)
    read(counted, *({"text_output": "x", "n_in": n_in, "n_out": n_out} for n_in, n_out in events))
    assert counted.usage == usage


def test_cumulative_text_holds_half_a_character_back() -> None:
    said = ["caf", "caf\ufffd", "café", "café \ufffd\ufffd", "café 你"]
    deltas = read(reader(WHOLE), *({"text_output": text} for text in said))
    assert [delta.text for delta in deltas] == ["caf", "é", " ", "你", ""]


def test_a_replacement_character_that_stays_is_said_at_the_end() -> None:
    deltas = read(reader(WHOLE), {"text_output": "a"}, {"text_output": "a\ufffd"})
    assert "".join(delta.text for delta in deltas) == "a\ufffd"


@given(st.text(max_size=20), st.lists(st.integers(0, 80), max_size=8), st.booleans())
def test_cumulative_text_comes_whole_however_its_bytes_are_cut(text: str, cuts: list[int], finishes: bool) -> None:
    data = text.encode()
    said = [data[:cut].decode(errors="replace") for cut in sorted(cuts)] + [text]
    outputs = WHOLE | ({"finish": FINISH["finish"]} if finishes else {})
    events = [{"text_output": each, "finish_reason": "None"} for each in said]
    events[-1]["finish_reason"] = "stop"
    deltas = read(reader(outputs), *events)
    assert "".join(delta.text for delta in deltas) == text
    assert [delta.finish for delta in deltas if delta.finish] == ["stop"]
