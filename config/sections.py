"""The tables of conch.toml as Structs: every setting, its type, its default, and what it means."""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec

MOST_PER_MINUTE = 10_000_000_000  # a bucket's 60,000,000 parts per request stay within 64 bits, three times over
LONGEST, LARGEST = 36_500 * 86_400.0, 1 << 50  # seconds, bytes
NANO = 1_000_000_000  # nano-dollars of a dollar

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB)")
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DOLLARS = re.compile(r"\d{1,9}(?:\.\d{1,9})?")


class Duration(float):
    """Seconds; written as "250ms", "30s", "5m", "24h", "7d"."""


class Period(Duration):
    """A Duration of more than nothing."""


class Size(int):
    """Bytes; written as "512B", "64KiB", "16MiB", "1GiB"."""


class Dollars(int):
    """Nano-dollars; written in dollars as a text, "0.10"."""


Positive = Annotated[int, msgspec.Meta(ge=1)]
PerMinute = Annotated[int, msgspec.Meta(ge=0, le=MOST_PER_MINUTE)]
Task = Literal["chat", "embedding", "rerank", "image", "speech", "transcription"]
Name = Annotated[str, msgspec.Meta(min_length=1)]
PipelineId = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{2,63}$")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of conch.toml: an unknown key is an error, since a misspelt setting must not pass for one."""


class Server(Section, frozen=True):
    """[server]: where Conch listens and what it takes from a connection."""

    host: str = "127.0.0.1"  # the address to listen on; "0.0.0.0" for all
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080  # 0: any that is free; it is logged
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] | Literal["auto"] = 1  # processes; auto: one for each processor
    max_body: Size = Size(16 << 20)  # a larger JSON body is a 413
    max_upload: Size = Size(256 << 20)  # a larger form, such as a recording to transcribe, is a 413
    max_header: Size = Size(64 << 10)  # larger headers are a 431
    max_url: Size = Size(8 << 10)  # a longer one is a 414
    max_requests: Positive = 4096  # more of them at once, in one worker, are answered 503 and come again
    max_connections: Positive = 8192  # more of them, in one worker, are answered 503 and closed
    header_timeout: Period = Period(10)  # headers that take longer are a 408
    body_timeout: Period = Period(30)  # a silence this long within a body is a 408
    request_timeout: Period = Period(600)  # a body that takes longer in all is a 408
    write_timeout: Period = Period(60)  # a client that reads nothing for so long has left
    keep_alive: Duration = Duration(75)  # an idle connection is closed after this
    drain: Duration = Duration(30)  # at SIGTERM: how long what is under way may take
    drain_delay: Duration = Duration(0)  # before that: /readyz answers 503 while connections are still taken
    access_log: bool = False  # a line of JSON on stdout for each request
    admin_listen: str | None = None  # "127.0.0.1:9090": /admin and /metrics are there, and 404 on everyone's port
    ssl_certfile: str | None = None  # for https, a PEM file: the certificate and those that vouch for it
    ssl_keyfile: str | None = None  # a PEM file, without a password; without it the key is in ssl_certfile
    # web pages that may call the API, such as "https://app.example.com"; ["*"]: all of them
    cors_origins: list[str] = []
    # debug also logs what models say when they fail, which may repeat a prompt, and tells servers in X-Conch-Upstream
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    public_url: str | None = None  # "https://api.example.com", where a proxy hides scheme or host from Conch


class Store(Section, frozen=True):
    """[store]: the ledger. A relative SQLite path is taken from the working directory."""

    url: str = "sqlite:var/conch.db"  # "sqlite:PATH", or "postgresql://user@host/name"
    max_files: Size = Size(256 << 20)  # of pictures that are kept an hour for their URLs
    when_down: Literal["closed", "open"] = "closed"  # open: keys seen within a minute pass, except where credits count


class Responses(Section, frozen=True):
    """[responses]: how long a stored response can be asked for."""

    retention: Period = Period(30 * 86400)  # how long a stored response can be asked for


class Idempotency(Section, frozen=True):
    """[idempotency]: how long an answer is kept for its Idempotency-Key, and how large it may be."""

    retention: Period = Period(86400)  # how long an answer is kept for its key
    max_body: Size = Size(1 << 20)  # a larger answer is not kept: asking again is a 422


class Credits(Section, frozen=True):
    """[credits]: where who has too few gets more."""

    topup_url: str | None = None  # told to who has too few


class Metrics(Section, frozen=True):
    """[metrics]: what GET /metrics tells Prometheus, and whom."""

    enabled: bool = True  # whether anything is counted
    public: bool = False  # whoever reaches the port may scrape; else CONCH_METRICS_TOKEN or CONCH_ADMIN_TOKEN opens it


class Tracing(Section, frozen=True):
    """[tracing]: W3C traceparent to Triton, and spans to an OpenTelemetry collector."""

    propagate: bool = True  # a request's traceparent reaches Triton
    endpoint: Name | None = None  # "http://collector:4318", OTLP over HTTP
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0  # of the requests that come without a traceparent
    service: Name = "conch"  # the name by which the collector knows this gateway


class Webhooks(Section, frozen=True):
    """[webhooks]: events that are sent to who asked for them."""

    private: bool = False  # also to http:// and to addresses of your own network, on any port
    credits_low: Dollars = Dollars(5 * NANO)  # a workspace has less left, unless it has a threshold of its own
    key_expiring: Period = Period(7 * 86400)  # so long before its end a key is told of
    every: Period = Period(10)  # how often balances, keys and deployments are looked at
    timeout: Period = Period(10)  # a receiver that takes longer has not received
    retry: Period = Period(5)  # after a first failure; four times as long after each one more, up to 6h
    give_up: Period = Period(3 * 86400)  # a delivery that has failed for so long is dead
    retention: Period = Period(30 * 86400)  # how long a delivery that has ended is listed


class Plan(Section, frozen=True):
    """[plans.NAME]: requests per minute of a key that asks for none, and the most that one may ask for.

    `concurrency`: requests of a workspace at once; `spend_limit`: its dollars per calendar month, unless it has its
    own. What the file says of a plan that Conch has lies over that.
    """

    default: PerMinute = 0  # requests per minute of a key that asks for none
    ceiling: PerMinute = 0  # the most requests per minute that a key may ask for
    # requests at once, where that is less than a minute's
    burst: Annotated[int, msgspec.Meta(ge=1, le=MOST_PER_MINUTE)] | None = None
    keys: bool = True  # whether a workspace on it may have keys
    concurrency: Positive | None = None  # requests of a workspace at once
    spend_limit: Dollars | None = None  # dollars of a workspace per calendar month, unless it has its own


PLANS: dict[str, Plan] = {
    "starter": Plan(keys=False),
    "pro": Plan(default=500, ceiling=1_000),
    "team": Plan(default=5_000, ceiling=10_000),
    "enterprise": Plan(default=50_000, ceiling=100_000),
}


class Upstream(Section, frozen=True):
    """[upstreams.NAME]: the Triton servers that hold the same models."""

    # "http://host:8000" of each server that holds the same models
    urls: Annotated[list[str], msgspec.Meta(min_length=1)]
    grpc: list[str] = []  # host:port of each of them, in the same order
    connect_timeout: Period = Period(5)  # for a new connection
    check_every: Period = Period(5)  # how often each model is verified anew


class Input(Section, frozen=True):
    """[models.in]: a tensor; exactly one of from, const, json or template says what goes in."""

    source: str | None = msgspec.field(name="from", default=None)  # the source that goes in
    const: bool | int | float | str | None = None  # always this
    default: bool | int | float | str | None = None  # goes in where a request has no such source
    # values of the source, and what the model calls them; others are refused
    map: dict[str, str | int | float | bool] | None = None
    scale: float | None = None  # the source, times this
    json: dict[str, "str | Input"] | None = None  # one JSON text with these keys, those absent left out
    template: str | None = None  # a text with sources put in: "### {prompt}"
    param: bool = False  # not a tensor: a parameter of the Triton request

    def __post_init__(self) -> None:
        ways = (self.source, self.const, self.json, self.template)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("Expected exactly one of `from`, `const`, `json`, `template`")


class Output(Section, frozen=True):
    """[models.out]: a meaning; the tensor that carries it and how to read that."""

    tensor: str  # its name
    mode: Literal["delta", "cumulative", "total"] | None = None  # of a stream: pieces, all so far, or (counts) the sum
    trim_stop: bool = False  # whether the engine leaves stop sequences in
    unset: list[str] = []  # what it says as long as it means nothing
    layout: Literal["NHWC", "NCHW", "HWC", "CHW"] = "NHWC"  # of pixels
    range: Literal[1, 255] = 255  # of pixels: 0 to this
    encoding: Literal["raw", "png", "base64", "json"] = "raw"  # raw pixels or numbers, a file, or a text of them
    activation: Literal["sigmoid", "none"] = "sigmoid"  # of a score: none where it lies between 0 and 1 already
    rate: Positive | None = None  # of sound, in Hz; needed there
    overlap: Duration = Duration(0)  # of pieces of sound that fade into one another


class Chat(Section, frozen=True):
    """[models.chat]: how a conversation becomes a prompt, and what a text may hold besides words."""

    template: str | None = None  # tokenizer_config.json or chat_template.jinja, or their folder; needed
    # how the model writes calls of functions
    tools: Literal["none", "hermes", "llama3_json", "mistral", "pythonic", "deepseek", "qwen3_coder", "harmony"] = (
        "none"
    )
    reasoning: Literal["none", "think"] = "none"  # think: what stands between <think> and </think> is not the answer


class Embedding(Section, frozen=True):
    """[models.embedding] and [models.rerank]: how texts become token ids, and what becomes of the vectors."""

    tokenizer: str | None = None  # tokenizer.json, for models that take token ids
    max_tokens: Positive = 512  # longer inputs are refused, or cut where truncate says so
    truncate: bool = False  # cut what is too long, and say nothing
    pooling: Literal["none", "mean", "cls", "last"] = "none"  # how the vectors of tokens become one
    normalize: bool = False  # to length 1
    prefix: str = ""  # stands before each text
    matryoshka: bool = False  # the first n dimensions are a vector of their own
    accepts_token_ids: bool = False  # whether clients may send ids of its tokenizer


class Image(Section, frozen=True):
    """[models.image]: the sizes that the model draws, "512x512" or "256x256..1024x1024/8" (multiples of 8 within)."""

    sizes: list[str] = []  # empty: the model has one size of its own
    max_n: Positive = 4  # pictures of one request
    max_steps: Positive = 200  # the most that a request may ask for
    max_guidance: Annotated[float, msgspec.Meta(ge=0)] = 30.0  # the most that a request may ask for


class Voice(Section, frozen=True):
    """[models.speech.voices.NAME]: the model's own name for a voice, or a recording to imitate."""

    name: str | None = None  # what the model calls it, where that is another name
    wav: str | None = None  # a recording to imitate
    text: str | None = None  # what the recording says


class Speech(Section, frozen=True):
    """[models.speech]: the voices by the names that clients use."""

    voices: dict[str, Voice] = {}  # none: the model knows their names itself
    default_voice: str | None = None  # for a request that names none
    rate: Positive = 24_000  # of voice.wav, in Hz: what the model wants a recording in
    longest: Period = Period(30)  # that a recording may be


class Transcription(Section, frozen=True):
    """[models.transcription]: how long sound is cut for the model."""

    rate: Positive = 16_000  # in Hz: what the model hears
    window: Period = Period(30)  # the most sound that the model takes at once
    overlap: Duration = Duration(2)  # of two windows, so that no word is cut
    languages: list[str] = []  # empty: not limited
    default_language: str | None = None  # for a request that names none: an ISO 639-1 code
    translates: bool = False  # whether it also translates into English


class Price(Section, frozen=True):
    """[models.price]: dollars per million tokens or characters, per image, per second of sound.

    `cached_input`: of the input tokens that the model had in its cache already; without it they cost as the others.
    """

    input: Dollars = Dollars(0)  # per million tokens
    # per million of those tokens of the input that the model had in its cache; without it as the others
    cached_input: Dollars | None = None
    output: Dollars = Dollars(0)  # per million tokens
    characters: Dollars = Dollars(0)  # per million, of speech
    images: Dollars = Dollars(0)  # for each
    seconds: Dollars = Dollars(0)  # for each, of sound


class Model(Section, frozen=True):
    """[[models]]: an id of the API bound to a model of a Triton repository."""

    id: Name  # what clients call it
    task: Task  # which endpoint serves it; a preset says it too
    upstream: Name  # the name of an [upstreams] table
    model: Name  # its name in the Triton repository
    version: str = ""  # empty: Triton's choice
    aliases: list[Name] = []  # other names for it
    preset: str | None = None  # what lies under this entry: a table of config/presets
    transport: Literal["generate", "infer", "grpc"] = "generate"  # Triton's endpoint, or gRPC
    timeout: Period = Period(300)  # a request that takes longer is a 504
    # how what is not streamed can be stopped; of models without a price that take long, grpc where there is one
    cancel: Literal["grpc", "stream", "none"] | None = None
    max_inflight: Positive | None = None  # requests of this process that a server has at once; None: no bound
    max_queue: Annotated[int, msgspec.Meta(ge=0)] | None = None  # of those that wait for one; 256 where it is not set
    autoload: bool = False  # have Triton load it for who asks
    cold_start_wait: Duration | None = None  # for which a request waits for that; 30 s where it is not set
    idle_unload: Period | None = None  # after so long without a request
    context: Positive | None = None  # tokens of prompt and answer together
    max_output: Positive | None = None  # the most tokens of an answer, and what it gets when none is asked for
    price: Price | None = None  # free without one
    workspaces: list[Name] = msgspec.field(default_factory=lambda: ["*"])  # which ones see it; "*": all
    owned_by: str = "conch"  # shown in GET /v1/models
    chat: Chat = Chat()  # of a chat model
    embedding: Embedding = Embedding()  # of an embedding model
    rerank: Embedding = Embedding()  # of a reranker: the keys of [models.embedding]
    image: Image = Image()  # of an image model
    speech: Speech = Speech()  # of a speech model
    transcription: Transcription = Transcription()  # of a transcription model
    # tensor = what goes in; false takes away what the preset says
    inputs: dict[str, str | Input | Literal[False]] = msgspec.field(name="in", default_factory=dict)
    # meaning = the tensor that has it
    outputs: dict[str, str | Output] = msgspec.field(name="out", default_factory=dict)


class Pipeline(Section, frozen=True):
    """[[pipelines]]: a fixed entry for pipeline-scoped keys and /v1/{pipelineId}/… paths."""

    id: PipelineId  # its place in paths; never a route's name
    workspace: Name  # whose keys may use it
    models: dict[Task, Name]  # task = the id of a model
    system: str | None = None  # what its chat model is told first, in POST /v1/{pipelineId}/pipeline
    voice: str | None = None  # in which its speech model speaks there, unless a request names another


class Config(Section, frozen=True):
    """conch.toml, whole."""

    server: Server = Server()  # where Conch listens
    store: Store = Store()  # the ledger
    responses: Responses = Responses()  # stored responses
    idempotency: Idempotency = Idempotency()  # kept answers
    credits: Credits = Credits()  # topping up
    metrics: Metrics = Metrics()  # GET /metrics
    tracing: Tracing = Tracing()  # traces
    webhooks: Webhooks = Webhooks()  # events
    plans: dict[str, Plan] = {}  # [plans.NAME]
    upstreams: dict[str, Upstream] = {}  # [upstreams.NAME]
    models: list[Model] = []  # [[models]]
    pipelines: list[Pipeline] = []  # [[pipelines]]


def read(kind: type, value: Any) -> Any:
    """msgspec's hook for Duration, Period, Size and Dollars."""
    if kind is Dollars:
        if not isinstance(value, str) or _DOLLARS.fullmatch(value) is None:
            raise ValueError(f'Expected dollars as a text such as "0.10", got {value!r}')
        return Dollars(Decimal(value) * NANO)
    pattern, units, most, example = (
        (_SIZE, _BYTES, LARGEST, '"16MiB"') if kind is Size else (_DURATION, _SECONDS, LONGEST, '"30s"')
    )
    match = pattern.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"Expected a text such as {example}, got {value!r}")
    amount = float(match[1]) * units[match[2]]
    if amount > most or (amount == 0 and kind is Period):
        raise ValueError(f"Expected {'more than nothing' if amount == 0 else 'less'}, got {value!r}")
    return kind(amount)
