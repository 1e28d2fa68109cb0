-- Files that are kept for a while behind signed URLs, and the secrets that every process of the gateway shares.

CREATE TABLE files (
    id TEXT PRIMARY KEY,
    expires_at BIGINT NOT NULL,
    size BIGINT NOT NULL,
    media_type TEXT NOT NULL,
    content BYTEA NOT NULL
);

CREATE INDEX files_by_expiry ON files (expires_at, size);

CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);
