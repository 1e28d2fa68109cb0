-- Money, what ran, idempotent answers, and the processes that hold any of it. Money is in nano-dollars, times in µs.
-- What stands in /* */ is for SQLite, which keeps such a table in one tree instead of two: fewer pages to a commit.
-- At every commit, per workspace: credits + its holds = its grants - the cost of its usage.

CREATE TABLE accounts (
    workspace TEXT PRIMARY KEY REFERENCES workspaces (name),
    credits BIGINT NOT NULL DEFAULT 0,
    month BIGINT NOT NULL DEFAULT 0,
    spent BIGINT NOT NULL DEFAULT 0,
    spend_limit BIGINT CHECK (spend_limit >= 0)
);

CREATE TABLE places (
    workspace TEXT PRIMARY KEY REFERENCES workspaces (name),
    running BIGINT NOT NULL DEFAULT 0 CHECK (running >= 0),
    admitted BIGINT NOT NULL DEFAULT 0
);

INSERT INTO accounts (workspace) SELECT name FROM workspaces;
INSERT INTO places (workspace) SELECT name FROM workspaces;

ALTER TABLE keys ADD COLUMN last_used_at BIGINT;

CREATE TABLE grants (
    id TEXT PRIMARY KEY,
    workspace TEXT NOT NULL REFERENCES workspaces (name),
    amount BIGINT NOT NULL CHECK (amount > 0),
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    note TEXT NOT NULL
);

CREATE INDEX grants_by_workspace ON grants (workspace, id);

CREATE TABLE processes (
    id TEXT PRIMARY KEY,
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL
);

CREATE TABLE holds (
    id TEXT PRIMARY KEY,
    process TEXT NOT NULL,
    workspace TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount >= 0),
    month BIGINT NOT NULL
) /* WITHOUT ROWID */;

CREATE TABLE slots (
    process TEXT NOT NULL,
    workspace TEXT NOT NULL,
    taken BIGINT NOT NULL CHECK (taken >= 0),
    PRIMARY KEY (process, workspace)
) /* WITHOUT ROWID */;

CREATE TABLE usage (
    at BIGINT NOT NULL,
    id TEXT NOT NULL,
    workspace TEXT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    input_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    images BIGINT NOT NULL,
    characters BIGINT NOT NULL,
    milliseconds BIGINT NOT NULL,
    cost BIGINT NOT NULL CHECK (cost >= 0),
    whole BIGINT NOT NULL,
    PRIMARY KEY (at, id)
) /* WITHOUT ROWID */;

CREATE TABLE claims (
    id BYTEA PRIMARY KEY,
    owner TEXT NOT NULL,
    process TEXT NOT NULL,
    digest BYTEA NOT NULL,
    state TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    head TEXT,
    body BYTEA
) /* WITHOUT ROWID */;

CREATE INDEX claims_by_expiry ON claims (expires_at);
CREATE INDEX claims_running ON claims (process) WHERE state = 'running';
