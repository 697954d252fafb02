-- What a site's agent keeps: providers, keyrings, jobs, and the machines that it backs up.
-- +goose Up
CREATE TABLE site_connections (
    id             TEXT   PRIMARY KEY,
    name           TEXT   NOT NULL,
    name_fold      TEXT   NOT NULL UNIQUE,
    address        TEXT   NOT NULL,
    ca_fingerprint TEXT   NOT NULL, -- pinned; empty when a public authority vouches
    authorities    BYTEA  NOT NULL,
    tenant_id      TEXT   NOT NULL,
    tenant_name    TEXT   NOT NULL,
    agent_id       TEXT   NOT NULL, -- empty until the provider has enrolled the site
    certificate    BYTEA  NOT NULL,
    sealed_key     BYTEA  NOT NULL,
    created        BIGINT NOT NULL
);

CREATE TABLE site_keyrings (
    fingerprint   TEXT    PRIMARY KEY,
    sealed_secret BYTEA   NOT NULL,
    is_current    BOOLEAN NOT NULL,
    kit           TEXT    NOT NULL,
    kit_time      BIGINT  NOT NULL,
    wrap          BYTEA   NOT NULL,
    pending_kit   TEXT    NOT NULL,
    pending_wrap  BYTEA   NOT NULL,
    created       BIGINT  NOT NULL
);
CREATE UNIQUE INDEX site_keyrings_current ON site_keyrings (is_current) WHERE is_current;

CREATE TABLE site_jobs (
    id              TEXT    PRIMARY KEY,
    name            TEXT    NOT NULL,
    name_fold       TEXT    NOT NULL UNIQUE,
    enabled         BOOLEAN NOT NULL,
    endpoint_id     TEXT    NOT NULL,
    connection_id   TEXT    NOT NULL REFERENCES site_connections (id),
    repository      TEXT    NOT NULL,
    repository_name TEXT    NOT NULL,
    selection       TEXT    NOT NULL,
    quiesce         TEXT    NOT NULL,
    cron            TEXT    NOT NULL, -- empty: by hand only
    zone            TEXT    NOT NULL,
    keep_points     BIGINT  NOT NULL,
    keep_days       BIGINT  NOT NULL,
    next            BIGINT  NOT NULL,
    created         BIGINT  NOT NULL,
    updated         BIGINT  NOT NULL
);

CREATE TABLE site_machines (
    repository  TEXT   NOT NULL,
    keyring     TEXT   NOT NULL,
    id          TEXT   NOT NULL, -- in points
    endpoint_id TEXT   NOT NULL,
    machine     TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    remembered  TEXT   NOT NULL, -- points, newest first
    session     TEXT   NOT NULL, -- an upload that broke off, or empty
    held        TEXT   NOT NULL, -- marks that the source may still keep for us
    epoch       BIGINT NOT NULL, -- the highest that the back-end was shown
    compared    BIGINT NOT NULL,
    runs        BIGINT NOT NULL,
    PRIMARY KEY (repository, keyring, id)
);

-- +goose Down
DROP TABLE site_machines;
DROP TABLE site_jobs;
DROP TABLE site_keyrings;
DROP TABLE site_connections;
