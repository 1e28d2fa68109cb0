-- How long what ran took, in µs (unknown of what ran before this), and the requests that reached a model and failed.

ALTER TABLE usage ADD COLUMN duration BIGINT;

CREATE TABLE failures (
    at BIGINT NOT NULL,
    id TEXT NOT NULL,
    workspace TEXT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    status BIGINT NOT NULL,
    PRIMARY KEY (at, id)
) /* WITHOUT ROWID */;
