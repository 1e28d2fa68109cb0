-- Stored responses. A row has its own turn; `previous` leads to the rest of the conversation.

CREATE TABLE responses (
    id TEXT PRIMARY KEY,
    workspace TEXT NOT NULL,
    pipeline TEXT,
    previous TEXT,
    created_at BIGINT NOT NULL,
    input TEXT NOT NULL,
    body TEXT NOT NULL
);

CREATE INDEX responses_by_age ON responses (created_at);
