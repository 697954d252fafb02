-- What a server and an agent both keep: claims, runs, the audit log.
-- +goose Up
CREATE TABLE claims (
    resource TEXT   PRIMARY KEY,
    holder   TEXT   NOT NULL,
    epoch    BIGINT NOT NULL, -- grows with each acquisition and is never reset
    until    BIGINT NOT NULL  -- 0: free
);
CREATE INDEX claims_holder ON claims (holder);

CREATE TABLE runs (
    id         TEXT    PRIMARY KEY,
    tenant_id  TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    subject    TEXT    NOT NULL,
    exclusive  BOOLEAN NOT NULL,
    spec       TEXT    NOT NULL,
    state      TEXT    NOT NULL,
    cancel     BOOLEAN NOT NULL,
    progress   TEXT    NOT NULL,
    result     TEXT    NOT NULL,
    failure    TEXT    NOT NULL,
    attempts   BIGINT  NOT NULL,
    created    BIGINT  NOT NULL,
    not_before BIGINT  NOT NULL,
    started    BIGINT  NOT NULL,
    ended      BIGINT  NOT NULL,
    holder     TEXT    NOT NULL,
    epoch      BIGINT  NOT NULL,
    until      BIGINT  NOT NULL,
    steps      BIGINT  NOT NULL
);
CREATE INDEX runs_tenant ON runs (tenant_id, id);
CREATE INDEX runs_subject ON runs (subject, id);
CREATE INDEX runs_open ON runs (id) WHERE ended = 0;
CREATE UNIQUE INDEX runs_one_open ON runs (tenant_id, kind, subject) WHERE ended = 0 AND exclusive;
CREATE INDEX runs_ended ON runs (ended) WHERE ended > 0;

CREATE TABLE run_steps (
    run_id   TEXT   NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    name     TEXT   NOT NULL,
    position BIGINT NOT NULL,
    state    TEXT   NOT NULL,
    attempts BIGINT NOT NULL,
    epoch    BIGINT NOT NULL,
    result   TEXT   NOT NULL,
    failure  TEXT   NOT NULL,
    started  BIGINT NOT NULL,
    ended    BIGINT NOT NULL,
    PRIMARY KEY (run_id, name)
);

CREATE TABLE audit_heads (
    chain    TEXT   PRIMARY KEY, -- a tenant's id, or empty for the provider
    sequence BIGINT NOT NULL,
    hash     TEXT   NOT NULL
);
CREATE TABLE audit_entries (
    chain    TEXT   NOT NULL,
    sequence BIGINT NOT NULL,
    time     BIGINT NOT NULL,
    actor    TEXT   NOT NULL,
    name     TEXT   NOT NULL,
    address  TEXT   NOT NULL,
    request  TEXT   NOT NULL,
    reason   TEXT   NOT NULL,
    action   TEXT   NOT NULL,
    target   TEXT   NOT NULL,
    detail   TEXT   NOT NULL,
    previous TEXT   NOT NULL,
    hash     TEXT   NOT NULL,
    PRIMARY KEY (chain, sequence)
);
CREATE INDEX audit_entries_target ON audit_entries (chain, target, sequence);

-- +goose Down
DROP TABLE audit_entries;
DROP TABLE audit_heads;
DROP TABLE run_steps;
DROP TABLE runs;
DROP TABLE claims;
