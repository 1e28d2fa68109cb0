-- Workspaces, keys, their token buckets and the audit. One text for SQLite and PostgreSQL: SQLite reads BYTEA as "any value",
-- which stores a blob as it is, and BIGINT as INTEGER. A statement ends with a semicolon at the end of its line.

CREATE TABLE workspaces (
    name TEXT PRIMARY KEY,
    plan TEXT NOT NULL,
    ceiling BIGINT CHECK (ceiling >= 1),
    created_at BIGINT NOT NULL
);

CREATE TABLE buckets (
    id TEXT PRIMARY KEY,
    tokens BIGINT NOT NULL CHECK (tokens >= 0),
    capacity BIGINT NOT NULL,
    granted BIGINT NOT NULL,
    at BIGINT NOT NULL
);

CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    workspace TEXT NOT NULL REFERENCES workspaces (name),
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    pipeline TEXT,
    per_minute BIGINT CHECK (per_minute >= 1),
    models TEXT,
    bucket TEXT NOT NULL REFERENCES buckets (id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    rotated_from_id TEXT REFERENCES keys (id),
    digest BYTEA NOT NULL UNIQUE
);

CREATE INDEX keys_by_workspace ON keys (workspace, id);

CREATE TABLE audit (
    id TEXT PRIMARY KEY,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    details TEXT NOT NULL
);
