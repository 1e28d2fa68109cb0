"""Every example of every client, run as it is printed in docs/clients/, against the gateway that `make run` serves."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sdk.clients import CLIENTS, EXAMPLES, HERE, SDK, Client
from tests.sdk.outside import Outside
from tests.sdk.pages import TABLES, with_table

pytestmark = pytest.mark.sdk

TIMEOUT = 120  # seconds: some clients take ten to be imported
CASES = [(client, file) for client in CLIENTS for file in client.examples()]
works: dict[tuple[str, str], bool] = {}

# Other ways to say the same: an example, a text of it, and what a user may write in its place.
CHAT = 'import agents; agents.set_default_openai_api("chat_completions"); set_tracing'
STRICT = "_strict_response_validation=True"
OTHERWISE = [
    *(
        (f"openai-python/{name}.py", "OpenAI()", f"OpenAI({STRICT})")
        for name in ("stream", "tools", "schema", "responses")
    ),
    *((f"vercel-openai/{name}.mjs", 'conch("', 'conch.chat("') for name in ("chat", "stream", "tools", "schema")),
    *((f"langchain/{name}.py", 't")', 't", use_responses_api=True)') for name in ("tools", "schema")),
    *((f"agents/{name}.py", "\nset_tracing", f"\n{CHAT}") for name in ("chat", "stream", "schema")),
    ("agents/tools.py", "set_default_openai_api(", "str("),
    ("llamaindex/schema.py", "should_use_structured_outputs", "is_function_calling_model"),
    ("instructor/schema.py", 't")', 't", mode=instructor.Mode.JSON_SCHEMA)'),
]

# Tools and a form for the answer at once: what is changed in an example, and what it then prints.
OBJECT = "output: Output.object({ schema: z.object({ city: z.string(), degrees: z.number() }) }),"
REPORT = """class Report(pydantic.BaseModel):
    city: str
    degrees: int


agent = Agent(output_type=Report, """
TYPED = {"from agents": "import pydantic\nfrom agents", "agent = Agent(": REPORT}
FORMED = {
    "{ generateText": "{ generateText, Output",
    "{ text }": "{ output: text }",
    "  tools:": f"  {OBJECT}\n  tools:",
}
TOGETHER = [
    ("agents/tools.py", TYPED, "city='Paris' degrees=21"),
    ("agents/tools.py", TYPED | {"set_default_openai_api(": "str("}, "city='Paris' degrees=21"),
    ("vercel-openai/tools.mjs", FORMED, "{ city: 'Paris', degrees: 21 }"),
    ("vercel-openai/tools.mjs", FORMED | {'conch("': 'conch.chat("'}, "{ city: 'Paris', degrees: 21 }"),
    (
        "vercel-compatible/tools.mjs",
        FORMED | {"  name:": "  supportsStructuredOutputs: true,\n  name:"},
        "{ city: 'Paris', degrees: 21 }",
    ),
]


def run(program: Path, file: Path, environment: dict[str, str], folder: Path) -> str:
    """What an example prints. Raises AssertionError with all that it said when it fails."""
    done = subprocess.run(
        [program, file], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT
    )
    assert done.returncode == 0, f"{file.name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def says(words: str) -> Callable[[str, Path], bool]:
    return lambda printed, folder: words in printed


def streams(printed: str, folder: Path) -> bool:
    """In pieces, of which at least one is neither empty nor the whole."""
    return printed.count("|") > 3 and "1, 2, 3, 4, 5" in printed.replace("|", "")


def fills(printed: str, folder: Path) -> bool:
    """An object that is seen before it is whole."""
    return "name='Ada', age=None" in printed and "name='Ada', age=36" in printed


def ada(printed: str, folder: Path) -> bool:
    return "Ada" in printed and "36" in printed


def draws(printed: str, folder: Path) -> bool:
    picture = (folder / "boat.png").read_bytes()
    return picture.startswith(b"\x89PNG") and picture[16:24] == bytes([0, 0, 2, 0, 0, 0, 2, 0])


def speaks(printed: str, folder: Path) -> bool:
    sound = (folder / "train.mp3").read_bytes()
    return len(sound) > 20_000 and (sound.startswith(b"ID3") or sound[0] == 0xFF)


def embeds(printed: str, folder: Path) -> bool:
    return printed == "Simmer the rice for ten minutes.\n"


def events(printed: str, folder: Path) -> bool:
    """What curl shows of a stream: every line whole, and its end."""
    data = [line.removeprefix("data: ") for line in printed.splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return len([json.loads(each) for each in data]) > 9


SHOWN: dict[str, Callable[[str, Path], bool]] = {
    "chat": says("1, 2, 3, 4, 5"),
    "stream": streams,
    "tools": says("21 degrees and sunny in Paris"),
    "schema": ada,
    "responses": lambda printed, folder: "1, 2, 3, 4, 5" in printed.replace("|", ""),
    "embeddings": embeds,
    "rerank": says("Simmer one cup of rice"),
    "images": draws,
    "speech": speaks,
    "transcription": says("city leaves at seven in the evening"),
    "curl/stream": events,
    "curl/responses": events,
    "curl/tools": says(r'"arguments":"{\"city\": \"Paris\"}"'),
    "curl/embeddings": lambda printed, folder: len(json.loads(printed)["data"][0]["embedding"]) == 384,
    "instructor/stream": fills,
    "instructor/responses": ada,
}


@pytest.mark.parametrize(("client", "file"), CASES, ids=[f"{client.name}-{file.stem}" for client, file in CASES])
def test_example(
    client: Client, file: Path, environment: dict[str, str], recording: bytes, witness: Outside, tmp_path: Path
) -> None:
    feature = file.stem
    works[client.name, feature] = False
    for program in client.programs:
        folder = tmp_path / str(client.programs.index(program))
        folder.mkdir()
        shown_as_it_should(client, file, program, environment, recording, folder)
    assert not witness.asked, f"{client.title} asked for {witness.asked}"
    works[client.name, feature] = True


def shown_as_it_should(
    client: Client, file: Path, program: Path, environment: dict[str, str], recording: bytes, folder: Path
) -> None:
    if file.stem == "transcription":
        (folder / "train.mp3").write_bytes(recording)
    printed = run(program, file, environment, folder)
    shown = SHOWN.get(f"{client.name}/{file.stem}", SHOWN[file.stem])
    assert shown(printed, folder), f"{client.name}/{file.name} printed {printed!r}"


@pytest.mark.parametrize(("name", "words", "others"), OTHERWISE)
def test_otherwise(
    name: str, words: str, others: str, environment: dict[str, str], recording: bytes, witness: Outside, tmp_path: Path
) -> None:
    text = (EXAMPLES / name).read_text()
    assert words in text
    file, folder = tmp_path / Path(name).name, tmp_path / "in"
    file.write_text(text.replace(words, others))
    (tmp_path / "node_modules").symlink_to(HERE / "node_modules")
    folder.mkdir()
    (client,) = (client for client in CLIENTS if client.name == Path(name).parent.name)
    shown_as_it_should(client, file, client.programs[0], environment, recording, folder)
    assert not witness.asked


@pytest.mark.parametrize(("name", "changes", "words"), TOGETHER)
def test_tools_and_a_form(
    name: str, changes: dict[str, str], words: str, environment: dict[str, str], witness: Outside, tmp_path: Path
) -> None:
    text = (EXAMPLES / name).read_text()
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    file = tmp_path / Path(name).name
    file.write_text(text)
    (tmp_path / "node_modules").symlink_to(HERE / "node_modules")
    (client,) = (client for client in CLIENTS if client.name == Path(name).parent.name)
    assert words in run(client.programs[0], file, environment, tmp_path)
    assert not witness.asked


def test_the_witness_hears_what_langchain_fetches_by_default(
    environment: dict[str, str], witness: Outside, tmp_path: Path
) -> None:
    text = (EXAMPLES / "langchain" / "embeddings.py").read_text()
    file = tmp_path / "embeddings.py"
    file.write_text(text.replace(", check_embedding_ctx_length=False)", ")"))
    with pytest.raises(AssertionError, match=r"embeddings.py ended with 1"):
        run(SDK / "python", file, environment, tmp_path)
    assert witness.asked, "the fetch of a tokenizer"
    assert all(line.startswith("CONNECT openaipublic.blob.core.windows.net:443 ") for line in witness.asked)


def test_the_table_says_what_works(write: bool) -> None:
    for path in TABLES:
        text = path.read_text()
        if write:
            path.write_text(with_table(text, works))
        else:
            assert text == with_table(text, works), f"{path.name} differs; make test-sdk ARGS=--write"
