"""The two nginx configurations of a bench run: a static "Triton" of the vLLM contract, a proxy to it."""

from __future__ import annotations

import json
from typing import Any

EVENTS = 64
WORD = " word"
PROMPT_TOKENS = 12
COMPLETION_TOKENS = 9
ANSWER = "The gateway turns chat requests into tensors."
MODEL = "/v2/models/assistant"

_INPUTS = {
    "text_input": "BYTES",
    "image": "BYTES",
    "stream": "BOOL",
    "sampling_parameters": "BYTES",
    "exclude_input_in_output": "BOOL",
    "return_finish_reason": "BOOL",
    "return_cumulative_logprob": "BOOL",
    "return_logprobs": "BOOL",
    "return_num_input_tokens": "BOOL",
    "return_num_output_tokens": "BOOL",
    "embedding_request": "BYTES",
}
_OUTPUTS = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "cumulative_logprob": "FP32",
    "logprobs": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
}
_ARRAYS = {"image", *_OUTPUTS} - {"num_input_tokens"}

# Without a master it never switches user, so the folder may be private. Connections never end by count.
_FRAME = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  default_type application/json;
  keepalive_requests 1000000000;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
{servers}
}}
"""


def triton(port: int) -> str:
    """nginx.conf of a Triton that is always ready and always gives the same answer; streams are chunked."""
    # Events by variable: a parameter of nginx.conf holds 4 KiB. sub_filter only takes the length away.
    return _FRAME.format(
        servers=f"""
  server {{
    listen 127.0.0.1:{port};
    set $event '{_event(WORD, "None", 1)}';
    set $last '{_event(WORD, "stop", 1)}';
    location = /v2/health/live {{ return 200; }}
    location = /v2/health/ready {{ return 200; }}
    location = {MODEL}/ready {{ return 200; }}
    location = {MODEL} {{ return 200 '{_metadata()}'; }}
    location = {MODEL}/config {{ return 200 '{_config()}'; }}
    location = {MODEL}/generate {{ return 200 '{_reply(ANSWER, "stop", COMPLETION_TOKENS)}'; }}
    location = {MODEL}/generate_stream {{
      default_type 'text/event-stream; charset=utf-8';
      sub_filter_types *;
      sub_filter '<never>' '';
      return 200 '{"$event" * (EVENTS - 1)}$last';
    }}
  }}"""
    )


def proxy(port: int, upstream: int) -> str:
    """nginx.conf of the yardstick: passes /generate and /stream to the port `upstream`, connections kept."""
    passing = f"proxy_pass http://triton{MODEL}"
    return _FRAME.format(
        servers=f"""
  upstream triton {{
    server 127.0.0.1:{upstream};
    keepalive 128;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    proxy_http_version 1.1;
    proxy_set_header Connection '';
    location = /generate {{ {passing}/generate; }}
    location = /stream {{ proxy_buffering off; {passing}/generate_stream; }}
  }}"""
    )


def _reply(text: str, finish: str, tokens: int) -> str:
    return _json(
        model_name="assistant",
        model_version="1",
        text_output=text,
        finish_reason=finish,
        num_input_tokens=PROMPT_TOKENS,
        num_output_tokens=tokens,
    )


def _event(text: str, finish: str, tokens: int) -> str:
    return f"data: {_reply(text, finish, tokens)}\\n\\n"


def _metadata() -> str:
    inputs, outputs = (
        [{"name": name, "datatype": kind, "shape": _shape(name)} for name, kind in tensors.items()]
        for tensors in (_INPUTS, _OUTPUTS)
    )
    return _json(name="assistant", versions=["1"], platform="vllm", inputs=inputs, outputs=outputs)


def _config() -> str:
    inputs = [
        {"name": name, "data_type": _data_type(kind), "dims": _shape(name), "optional": name != "text_input"}
        for name, kind in _INPUTS.items()
    ]
    outputs = [{"name": name, "data_type": _data_type(kind), "dims": _shape(name)} for name, kind in _OUTPUTS.items()]
    policy = {"decoupled": True}
    return _json(
        name="assistant",
        backend="vllm",
        max_batch_size=0,
        input=inputs,
        output=outputs,
        model_transaction_policy=policy,
    )


def _shape(name: str) -> list[int]:
    return [-1] if name in _ARRAYS else [1]


def _data_type(kind: str) -> str:
    return "TYPE_STRING" if kind == "BYTES" else f"TYPE_{kind}"


def _json(**fields: Any) -> str:
    return json.dumps(fields, separators=(",", ":"))
