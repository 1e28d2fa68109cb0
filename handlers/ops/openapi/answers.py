"""What requests are answered with, by example: the Structs themselves."""

import msgspec

from handlers.door.schemas import audio, chat, completions, embeddings, images, models, pipeline, rerank, responses
from handlers.door.schemas import response_events as told
from handlers.ops import about, cards, check, deployments
from handlers.ops.webhooks import desk

QUESTION = "What is Conch?"
CREATED = 1_767_225_600
USAGE = chat.Usage(12, 5, 17)
WEBHOOK = (
    "wh_4f6d8a",
    "acme",
    "https://example.com/acme",
    ["credits.low"],
    "",
    CREATED * 1_000_000,
    None,
    None,
    None,
)
KEY = ("key_4f6d8a", "acme", "website", "rp_live_3f9a", None, None, None, CREATED * 1_000_000, None, None, None, None)
ASKED = responses.Message("user", [responses.InputText(QUESTION)], "msg_4f6d")
RESPONSE = responses.Response(
    id="resp_7f0c",
    created_at=CREATED,
    completed_at=CREATED + 1,
    status="completed",
    model="assistant",
    previous_response_id=None,
    instructions=None,
    output=[responses.Message("assistant", [responses.OutputText("A gateway.")], "msg_7f0c")],
    tools=[],
    tool_choice="auto",
    parallel_tool_calls=True,
    text=responses.TextField(chat.TextFormat()),
    top_p=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    top_logprobs=0,
    temperature=1.0,
    reasoning=responses.ReasoningField(None),
    usage=responses.ResponseUsage(12, 5, 17),
    max_output_tokens=None,
    store=True,
    metadata={},
    safety_identifier=None,
    prompt_cache_key=None,
)
FIT = check.Fit(
    "assistant",
    "chat",
    True,
    "",
    ["text_input", "text_output"],
    [],
    [],
    [check.Stand("http://triton:8000", True, "")],
)

# What they are answered with; of a union the first. Of a stream, one event.
ANSWERS: dict[type[msgspec.Struct], msgspec.Struct] = {
    chat.ChatCompletion: chat.ChatCompletion(
        "chatcmpl-7f0c", CREATED, "assistant", [chat.Choice(0, chat.AnswerMessage("A gateway."), "stop")], USAGE
    ),
    chat.ChatCompletionChunk: chat.ChatCompletionChunk(
        "chatcmpl-7f0c", CREATED, "assistant", [chat.ChunkChoice(0, chat.ChunkDelta(content="A"))], None
    ),
    completions.Completion: completions.Completion(
        "cmpl-7f0c", CREATED, "assistant", [completions.CompletionChoice("1, 2, 3", 0, None, "stop")], USAGE
    ),
    embeddings.EmbeddingList: embeddings.EmbeddingList(
        [embeddings.Embedding(0, [0.25, -0.5, 0.75])], "minilm", embeddings.EmbeddingUsage(7, 7)
    ),
    rerank.Reranking: rerank.Reranking(
        "reranker", [rerank.RerankResult(1, 0.98, 0.98)], 2, embeddings.EmbeddingUsage(19, 19)
    ),
    images.ImagesResponse: images.ImagesResponse(CREATED, [images.Picture(b64_json=b"\x89PNG")], "png", "256x256"),
    audio.Transcription: audio.Transcription("Good morning.", audio.Duration(0.9)),
    audio.Translation: audio.Translation("Good morning."),
    audio.SpeechAudioDelta: audio.SpeechAudioDelta("SUQzBA=="),
    audio.TranscriptTextDelta: audio.TranscriptTextDelta("Good"),
    pipeline.PipelineAnswer: pipeline.PipelineAnswer(
        "turn-7f0c",
        CREATED,
        "pipe_voice",
        pipeline.PipelineModels("listener", "assistant", "voice"),
        QUESTION,
        "A gateway.",
        "stop",
        pipeline.PipelineAudio("SUQzBA==", "mp3"),
        pipeline.PipelineUsage(audio.Duration(0.9), USAGE, pipeline.SpokenUsage(10, 0.8)),
    ),
    pipeline.TranscriptDelta: pipeline.TranscriptDelta("What is"),
    models.ModelCard: models.ModelCard("assistant", CREATED, "conch"),
    models.ModelList: models.ModelList([models.ModelCard("assistant", CREATED, "conch")]),
    models.Health: models.Health("ok"),
    cards.KeyCard: cards.KeyCard(*KEY),
    cards.NewKey: cards.NewKey(*KEY, "rp_live_" + "3f9a" * 16),
    cards.WorkspaceCard: cards.WorkspaceCard("acme", "pro", None, "100.00", "5.00", "25.00", CREATED * 1_000_000),
    desk.WebhookCard: desk.WebhookCard(*WEBHOOK),
    desk.NewWebhook: desk.NewWebhook(*WEBHOOK, "whsec_" + "3f9a" * 16),
    desk.DeliveryCard: desk.DeliveryCard(
        "dlv_4f6d8a",
        "wh_4f6d8a",
        "evt_4f6d8a",
        "credits.low",
        "delivered",
        CREATED * 1_000_000,
        1,
        CREATED * 1_000_000,
        None,
        200,
        None,
    ),
    cards.AccountCard: cards.AccountCard("acme", "25.00", "0.00", "2026-01", "3.20", "100.00"),
    responses.Response: RESPONSE,
    told.TextDelta: told.TextDelta(4, "msg_7f0c", 0, 0, "A gateway.", []),
    responses.Deleted: responses.Deleted("resp_7f0c"),
    responses.ItemList: responses.ItemList([ASKED], "msg_4f6d", "msg_4f6d", False),
    images.CompletedImageEvent: images.CompletedImageEvent(b"\x89PNG", "auto", CREATED, "png", "auto", "256x256"),
    cards.GrantCard: cards.GrantCard("grant_4f6d8a", CREATED * 1_000_000, "25.00", "invoice 42", "cli:ann"),
    cards.PlanCard: cards.PlanCard("pro", 500, 1000, None, None, "250.00", True),
    cards.UsageCard: cards.UsageCard(
        day="2026-01-01",
        model="assistant",
        requests=12,
        errors=0,
        input_tokens=2400,
        cached_tokens=0,
        output_tokens=600,
        images=0,
        characters=0,
        seconds=0.0,
        cost_usd="0.0024",
    ),
    cards.RequestCard: cards.RequestCard(
        "req_4f6d8a",
        CREATED * 1_000_000,
        "acme",
        "key_4f6d8a",
        "assistant",
        input_tokens=200,
        cached_tokens=0,
        output_tokens=50,
        images=0,
        characters=0,
        seconds=0.0,
        cost_usd="0.0002",
        whole=True,
        duration_ms=512.4,
    ),
    cards.EventCard: cards.EventCard(
        "event_4f6d8a", CREATED * 1_000_000, "cli:ann", "workspace.create", "acme", {"plan": "pro"}
    ),
    check.Fit: FIT,
    deployments.DeploymentCard: deployments.DeploymentCard(
        *("assistant", "chat", "serving", "", 2, 0, 64, 256, 0, 0, 0, 0, 0, 0),
        [deployments.ServerCard("http://triton:8000", "serving", "", 2, 1204, 0, 0)],
    ),
    about.About: about.About(
        "0.1.0",
        None,
        [about.Served("assistant", "chat", ["*"], [])],
        [about.Piped("pipe_support", "acme", {"chat": "assistant"})],
    ),
}
