"""A client made of /v1/openapi.json by openapi-python-client: it compiles, and it is answered."""

import subprocess
from pathlib import Path

import pytest

from tests.gateway import ROOT, Conch

SDK = ROOT / ".venv-sdk" / "bin"
CALLS = """
import sys

from conch_client import AuthenticatedClient
from conch_client.api.chat import chat_create
from conch_client.api.embeddings import embeddings_create
from conch_client.api.models import models_index
from conch_client.models import ChatCompletion, ChatRequest, EmbeddingRequest, Error, UserMessage, UserMessageRole

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2], raise_on_unexpected_status=True)
print(*(model.id for model in models_index.sync(client=client).data))
asked = [UserMessage(role=UserMessageRole.USER, content="What is Conch?")]
answer = chat_create.sync(client=client, body=ChatRequest(messages=asked, model="assistant"))
assert isinstance(answer, ChatCompletion), answer
print(answer.choices[0].message.content)
vectors = embeddings_create.sync(client=client, body=EmbeddingRequest(input_="The sea", model="minilm"))
print(len(vectors.data[0].embedding), "numbers")
refused = chat_create.sync(client=client, body=ChatRequest(messages=asked, model="none"))
assert isinstance(refused, Error), refused
print(refused.error.code)
"""

pytestmark = pytest.mark.sdk


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={"PATH": str(SDK)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_generated_client_compiles_and_is_answered(conch: Conch, key: str, tmp_path: Path) -> None:
    document = f"{conch.url}/v1/openapi.json"
    run(SDK / "openapi-python-client", "generate", "--url", document, "--output-path", "made", cwd=tmp_path)
    made = tmp_path / "made"
    run(SDK / "python", "-m", "compileall", "-q", "conch_client", cwd=made)
    models, *answer, length, code = run(SDK / "python", "-c", CALLS, conch.url, key, cwd=made).splitlines()
    assert {"assistant", "minilm"} <= set(models.split())
    assert "Triton" in " ".join(answer)
    assert length == "384 numbers"
    assert code == "model_not_found"
