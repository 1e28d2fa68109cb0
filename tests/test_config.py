"""The settings: files, environments and variables over one another, presets under models, mistakes in a sentence."""

from pathlib import Path
from typing import Any

import pytest

from config import PRESETS, Config, ConfigError, Input, Output, Plan, load

MINIMAL = """
[upstreams.local]
urls = ["http://127.0.0.1:8000"]

[[models]]
id = "m"
task = "chat"
upstream = "local"
model = "ensemble"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test's conch.toml is."""
    return tmp_path / "conch.toml"


def read(file: Path, text: str, env: str | None = None, **variables: str) -> Config:
    """The settings of a file with this text."""
    file.write_text(text)
    return load(file, env, variables)


def model(file: Path, rest: str, **variables: str) -> Any:
    """The model of MINIMAL with these lines added to its table."""
    return read(file, MINIMAL + rest, **variables).models[0]


def test_the_file_that_comes_with_conch() -> None:
    config = load(variables={})
    ids = {each.id for each in config.models}
    assert ids == {"assistant", "minilm", "reranker", "diffusion", "voice", "listener"}
    template = config.models[0].chat.template
    assert template is not None
    assert Path(template).exists()
    assert config.server.host == "127.0.0.1", "nothing listens to the network unless it is told to"


def test_defaults(file: Path) -> None:
    config = read(file, "")
    assert (config.server.port, config.server.max_body, config.server.max_header) == (8080, 16 << 20, 64 << 10)
    assert (float(config.server.header_timeout), config.store.url) == (10, "sqlite:var/conch.db")
    assert config.plans == {
        "starter": Plan(keys=False),
        "pro": Plan(default=500, ceiling=1_000),
        "team": Plan(default=5_000, ceiling=10_000),
        "enterprise": Plan(default=50_000, ceiling=100_000),
    }


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("30s", 30), ("1.5m", 90), ("24h", 86_400), ("7d", 604_800)]
)
def test_durations(file: Path, text: str, seconds: float) -> None:
    assert model(file, f'timeout = "{text}"').timeout == seconds


@pytest.mark.parametrize(
    ("text", "bytes"), [("512B", 512), ("64KiB", 65_536), ("1.5MiB", 1_572_864), ("1GiB", 1 << 30)]
)
def test_sizes(file: Path, text: str, bytes: int) -> None:
    assert read(file, f'[server]\nmax_body = "{text}"').server.max_body == bytes


def test_an_environment_lies_over_the_file(file: Path) -> None:
    text = (
        MINIMAL
        + """
[plans.pro]
default = 5
ceiling = 9

[env.prod.server]
port = 9000
[env.prod.upstreams.second]
urls = ["http://b:8000"]
[[env.prod.models]]
id = "m"
model = "other"
[[env.prod.models]]
id = "n"
task = "chat"
upstream = "second"
model = "n"
"""
    )
    assert read(file, text).server.port == 8080
    for config in (read(file, text, "prod"), read(file, text, CONCH_ENV="prod")):
        assert config.server.port == 9000
        assert list(config.upstreams) == ["local", "second"]
        assert [(each.id, each.model, each.upstream) for each in config.models] == [
            ("m", "other", "local"),
            ("n", "n", "second"),
        ]
        assert config.plans["pro"] == Plan(default=5, ceiling=9)
        assert config.plans["team"].default == 5_000
    assert read(file, text, "prod", CONCH_SERVER__PORT="1").server.port == 1


def test_variables_lie_over_everything(file: Path) -> None:
    config = read(
        file,
        MINIMAL,
        CONCH_SERVER__PORT="9001",
        CONCH_SERVER__MAX_BODY="1MiB",
        CONCH_STORE__URL="sqlite:/x.db",
        CONCH_UPSTREAMS__LOCAL__URLS="http://a:1, http://b:2",
        CONCH_PLANS__GOLD='{"default": 7, "ceiling": 8}',
        CONCH_PLANS__STARTER__KEYS="true",
        CONCH_ADMIN_TOKEN="not a setting",
        OTHER_SERVER__PORT="1",
    )
    assert (config.server.port, config.server.max_body, config.store.url) == (9001, 1 << 20, "sqlite:/x.db")
    assert config.upstreams["local"].urls == ["http://a:1", "http://b:2"]
    assert config.plans["gold"] == Plan(default=7, ceiling=8)
    assert config.plans["starter"].keys
    listed = read(file, MINIMAL, CONCH_UPSTREAMS__LOCAL__URLS='["http://c:3"]')
    assert listed.upstreams["local"].urls == ["http://c:3"]


def test_what_is_said_of_a_plan_lies_over_it(file: Path) -> None:
    plans = read(file, "[plans.pro]\nceiling = 2000", CONCH_PLANS__TEAM__KEYS="false").plans
    assert plans["pro"] == Plan(default=500, ceiling=2000)
    assert plans["team"] == Plan(default=5_000, ceiling=10_000, keys=False)


def test_no_wait_is_a_duration_where_it_makes_sense(file: Path) -> None:
    assert read(file, '[server]\ndrain = "0s"').server.drain == 0.0


def test_workers_are_a_number_or_as_many_as_processors(file: Path) -> None:
    assert read(file, "").server.workers == 1
    assert read(file, "", CONCH_SERVER__WORKERS="3").server.workers == 3
    assert read(file, '[server]\nworkers = "auto"').server.workers == "auto"


def test_names_without_two_underscores_are_not_ours(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = read(
        file,
        "",
        CONCH_PORT="tcp://10.0.0.1:8080",
        CONCH_SERVICE_HOST="10.0.0.1",
        CONCH_PORT_8080_TCP_ADDR="10.0.0.1",
        CONCH_SERVER_SERVICE_HOST="10.0.0.1",
    )
    assert (config.server.port, caplog.messages) == (8080, [])
    assert read(file, "", CONCH_SERVER_PORT="9000").server.port == 8080
    (said,) = caplog.messages
    assert "CONCH_SERVER_PORT is ignored" in said


def test_the_file_is_named_by_a_variable(file: Path) -> None:
    file.write_text("[server]\nport = 9002")
    assert load(variables={"CONCH_CONFIG": str(file)}).server.port == 9002


def test_a_preset_lies_under_its_model(file: Path) -> None:
    made = model(
        file,
        """
preset = "trtllm"
in.seed = false
in.random_seed = "seed"
in.max_tokens = { default = 64 }
in.exclude_input_in_output = { from = "extra.exclude" }
in.top_k = { const = 1 }
out.text = { mode = "cumulative" }
out.finish = "finish_reason"
""",
    )
    assert made.inputs["text_input"] == "prompt"
    assert made.inputs["seed"] is False
    assert made.inputs["random_seed"] == "seed"
    assert made.inputs["max_tokens"] == Input(source="max_tokens", default=64)
    assert made.inputs["exclude_input_in_output"] == Input(source="extra.exclude"), "another way replaces the whole"
    assert made.inputs["top_k"] == Input(const=1)
    assert made.outputs["text"] == Output("text_output", mode="cumulative", trim_stop=True)
    assert made.outputs["finish"] == "finish_reason"


def test_a_key_is_added_to_a_presets_json(file: Path) -> None:
    made = model(file, 'preset = "vllm"\nin.sampling_parameters.json.best_of = "extra.best_of"')
    keys = made.inputs["sampling_parameters"].json
    assert keys["best_of"] == "extra.best_of"
    assert keys["temperature"] == "temperature"


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.toml")))
def test_every_preset_can_be_read(file: Path, preset: str) -> None:
    text = MINIMAL.replace('"chat"', '"embedding"') + f'preset = "{preset}"'  # the task that takes every transport
    made = read(file, text).models[0]
    assert made.inputs
    assert made.outputs


def test_a_template_is_found_from_the_file(file: Path) -> None:
    assert model(file, 'chat.template = "t/x.jinja"').chat.template == str(file.parent.resolve() / "t/x.jinja")
    assert model(file, 'chat.template = "/t/x.jinja"').chat.template == "/t/x.jinja"


MISTAKES: list[tuple[str, dict[str, str], str]] = [
    ("[server]\nprot = 1", {}, "unknown field `prot`"),
    ("[sever]\nport = 1", {}, "unknown field `sever`"),
    ("[server]\nport = 70000", {}, r"<= 65535 - at `\$.server.port`"),
    ("[server]\nworkers = 0", {}, r">= 1 - at `\$.server.workers"),
    ('[server]\nworkers = "all"', {}, r"'all' - at `\$.server.workers"),
    ('[server]\nmax_body = "16MB"', {}, "such as \"16MiB\", got '16MB'"),
    ("[server]\nmax_body = 5", {}, "got 5"),
    ('[server]\ndrain = "soon"', {}, 'such as "30s"'),
    ("[server", {}, "not valid TOML"),
    ("models = 5", {}, "array"),
    ("models = [5]", {}, "object"),
    ("[models]\nid = 1", {}, "array"),
    (MINIMAL + 'chat = "x"', {}, "models"),
    (MINIMAL + "[env]\nprod = 5", {"CONCH_ENV": "prod"}, r"no \[env.prod\]"),
    ("", {"CONCH_ENV": "prod"}, r"no \[env.prod\]; the file has: none"),
    (MINIMAL + 'preset = "nothing"', {}, "no preset 'nothing'; there are: .*trtllm, .*vllm"),
    (MINIMAL.replace('upstream = "local"', 'upstream = "x"'), {}, r"no \[upstreams.x\]"),
    (MINIMAL + 'task = "sing"', {}, "not valid TOML"),
    (MINIMAL.replace('"chat"', '"sing"'), {}, "'sing'"),
    (MINIMAL + "max_output = 0", {}, ">= 1"),
    (MINIMAL + 'aliases = ["m"]', {}, "the name 'm' is taken"),
    (MINIMAL + 'aliases = ["default"]', {}, "the name 'default' is taken"),
    (MINIMAL + 'in.a = { from = "seed", const = 1 }', {}, "exactly one of"),
    (MINIMAL + "in.a = { default = 1 }", {}, "exactly one of"),
    (MINIMAL + "in.a = true", {}, "models"),
    (MINIMAL + 'out.text = { mode = "delta" }', {}, "tensor"),
    (MINIMAL + '[[pipelines]]\nid = "Pipe"\nworkspace = "a"\nmodels = {}', {}, "pipelines"),
    (MINIMAL + '[[pipelines]]\nid = "models"\nworkspace = "a"\nmodels = {}', {}, "choose another"),
    (MINIMAL + 2 * '[[pipelines]]\nid = "pipe"\nworkspace = "a"\nmodels = {}\n', {}, "choose another"),
    (MINIMAL + '[[pipelines]]\nid = "pipe"\nworkspace = "a"\nmodels = { chat = "x" }', {}, "'x' is no chat model's id"),
    ("[plans.pro]\ndefault = 9\nceiling = 5", {}, "default 9 is over its ceiling 5"),
    ("[upstreams.x]\nurls = []", {}, "urls"),
    ("[plans.pro]\nceiling = 10000000001", {}, r"<= 10000000000 - at `\$.plans"),
    ("[plans.pro]\nburst = 0", {}, ">= 1"),
    ("[plans.pro]\nceiling = 100", {}, "default 500 is over its ceiling 100"),
    (MINIMAL + 'timeout = "0s"', {}, "more than nothing, got '0s'"),
    ('[server]\ndrain = "99999999999d"', {}, "Expected less"),
    ('[server]\nmax_body = "99999999999GiB"', {}, "Expected less"),
    (MINIMAL + 'transport = "infer"', {}, "transport 'infer' is not for chat; use generate or grpc"),
    (MINIMAL.replace('"chat"', '"speech"') + 'transport = "generate"', {}, "is not for speech; use infer or grpc"),
    ('[upstreams.x]\nurls = ["triton:8000"]', {}, "'triton:8000' is no address such as http://host:8000"),
    ('[upstreams.x]\nurls = ["http://a:99999"]', {}, "is no address"),
    ('[upstreams.x]\nurls = ["http://a:1"]\ngrpc = ["a"]', {}, "'a' is no address such as host:8001"),
    ("", {"CONCH_SERVER__PROT": "1"}, "unknown field `prot`"),
    ("", {"CONCH_SERVER__PORT": "many"}, r"\$.server.port"),
    ("", {"CONCH_PLANS__X": "{"}, "CONCH_PLANS__X: not valid JSON"),
    ("", {"CONCH_STORE__URL": "x", "CONCH_STORE__URL__MORE": "y"}, "another variable sets 'url'"),
]


@pytest.mark.parametrize(("text", "variables", "says"), MISTAKES)
def test_a_mistake_is_told_in_one_sentence(file: Path, text: str, variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refusal:
        read(file, text, **variables)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).endswith(".")


def test_the_grpc_addresses_of_a_file_go_with_its_urls(file: Path) -> None:
    text = '[upstreams.gpu]\nurls = ["http://a:8000"]\ngrpc = ["a:8001"]'
    assert read(file, text).upstreams["gpu"].grpc == ["a:8001"]
    other = {"CONCH_UPSTREAMS__GPU__URLS": "http://b:8000, http://c:8000"}
    assert read(file, text, **other).upstreams["gpu"].grpc == []
    for variables in (
        {**other, "CONCH_UPSTREAMS__GPU__GRPC": "b:8001, c:8001"},
        {"CONCH_UPSTREAMS__GPU__GRPC": "d:8001"},
    ):
        assert len(read(file, text, **variables).upstreams["gpu"].grpc) == len(variables)


def test_the_files_of_a_model_lie_beside_the_settings(file: Path) -> None:
    text = MINIMAL + 'speech.voices.ada = { wav = "ada.wav", text = "x" }\nembedding.tokenizer = "a/tokenizer.json"'
    model = read(file, text).models[0]
    assert model.speech.voices["ada"].wav == str(file.parent / "ada.wav")
    assert model.embedding.tokenizer == str(file.parent / "a/tokenizer.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the file with --config"):
        load(tmp_path / "none.toml", variables={})
