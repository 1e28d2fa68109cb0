-- Webhooks: who is told of what, what there is to tell, and what became of it. Times are in µs. A secret is kept as it
-- is, since an HMAC needs it. `accounts.low_at`: nano-dollars below which a balance is low; null: what the settings say.

CREATE TABLE webhooks (
    id TEXT PRIMARY KEY,
    workspace TEXT REFERENCES workspaces (name),
    url TEXT NOT NULL,
    events TEXT NOT NULL,
    description TEXT NOT NULL,
    secret TEXT NOT NULL,
    old_secret TEXT,
    old_until BIGINT,
    created_at BIGINT NOT NULL,
    disabled_at BIGINT,
    reason TEXT
);

CREATE INDEX webhooks_by_workspace ON webhooks (workspace);

CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    webhook TEXT NOT NULL REFERENCES webhooks (id),
    event TEXT NOT NULL,
    type TEXT NOT NULL,
    body TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    since BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    attempted_at BIGINT,
    status BIGINT,
    error TEXT
);

CREATE INDEX deliveries_by_webhook ON deliveries (webhook, id);
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE state = 'pending';

CREATE TABLE alerts (
    type TEXT NOT NULL,
    subject TEXT NOT NULL,
    at BIGINT NOT NULL,
    level BIGINT NOT NULL,
    PRIMARY KEY (type, subject)
);

CREATE TABLE sightings (
    process TEXT NOT NULL,
    deployment TEXT NOT NULL,
    up BIGINT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (process, deployment)
);

CREATE INDEX sightings_by_deployment ON sightings (deployment, up);

CREATE TABLE looks (
    name TEXT PRIMARY KEY,
    at BIGINT NOT NULL
);

ALTER TABLE accounts ADD COLUMN low_at BIGINT CHECK (low_at >= 0);

CREATE INDEX keys_by_expiry ON keys (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX keys_by_predecessor ON keys (rotated_from_id) WHERE rotated_from_id IS NOT NULL;
