-- What the provider keeps: tenants, people, agents, trust, repositories, quotas.
-- +goose Up
CREATE TABLE tenants (
    id          TEXT    PRIMARY KEY,
    type        TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    name_fold   TEXT    NOT NULL,
    description TEXT    NOT NULL,
    enabled     BOOLEAN NOT NULL,
    lease_end   BIGINT  NOT NULL, -- 0: never
    max_tasks   BIGINT  NOT NULL,
    created     BIGINT  NOT NULL,
    updated     BIGINT  NOT NULL,
    version     BIGINT  NOT NULL,
    deleted     BIGINT  NOT NULL  -- 0: alive
);
CREATE UNIQUE INDEX tenants_name ON tenants (name_fold) WHERE deleted = 0;

CREATE TABLE users (
    id        TEXT    PRIMARY KEY,
    tenant_id TEXT    NOT NULL, -- empty: the provider's
    name      TEXT    NOT NULL,
    name_fold TEXT    NOT NULL,
    role      TEXT    NOT NULL,
    password  TEXT    NOT NULL,
    enabled   BOOLEAN NOT NULL,
    created   BIGINT  NOT NULL,
    updated   BIGINT  NOT NULL,
    version   BIGINT  NOT NULL
);
CREATE UNIQUE INDEX users_name ON users (tenant_id, name_fold);

CREATE TABLE tokens (
    id        TEXT   PRIMARY KEY,
    user_id   TEXT   NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    tenant_id TEXT   NOT NULL,
    name      TEXT   NOT NULL,
    hash      TEXT   NOT NULL UNIQUE,
    scope     BIGINT NOT NULL,
    created   BIGINT NOT NULL,
    expires   BIGINT NOT NULL, -- 0: never
    last_used BIGINT NOT NULL
);
CREATE INDEX tokens_user ON tokens (user_id);

CREATE TABLE agents (
    id        TEXT   PRIMARY KEY,
    tenant_id TEXT   NOT NULL REFERENCES tenants (id),
    name      TEXT   NOT NULL,
    key       TEXT   NOT NULL,
    version   TEXT   NOT NULL,
    enrolled  BIGINT NOT NULL,
    last_seen BIGINT NOT NULL,
    revoked   BIGINT NOT NULL
);
CREATE INDEX agents_tenant ON agents (tenant_id, id);

CREATE TABLE enrolments (
    id        TEXT   PRIMARY KEY,
    tenant_id TEXT   NOT NULL REFERENCES tenants (id),
    site      TEXT   NOT NULL,
    hash      TEXT   NOT NULL UNIQUE,
    created   BIGINT NOT NULL,
    expires   BIGINT NOT NULL,
    key       TEXT   NOT NULL, -- empty: not used yet
    agent_id  TEXT   NOT NULL
);
CREATE INDEX enrolments_tenant ON enrolments (tenant_id, id);

CREATE TABLE authorities (
    slot        TEXT   PRIMARY KEY, -- 'current'
    id          TEXT   NOT NULL,
    certificate BYTEA  NOT NULL,
    sealed_key  BYTEA  NOT NULL,
    created     BIGINT NOT NULL
);
CREATE TABLE server_certificates (
    slot       TEXT   PRIMARY KEY, -- 'current'
    chain      BYTEA  NOT NULL,
    sealed_key BYTEA  NOT NULL,
    imported   BIGINT NOT NULL
);

CREATE TABLE locations (
    id        TEXT    PRIMARY KEY,
    name      TEXT    NOT NULL,
    name_fold TEXT    NOT NULL UNIQUE,
    kind      TEXT    NOT NULL,
    path      TEXT    NOT NULL,
    read_only BOOLEAN NOT NULL,
    created   BIGINT  NOT NULL,
    updated   BIGINT  NOT NULL,
    version   BIGINT  NOT NULL
);

CREATE TABLE cloud_repositories (
    id            TEXT   PRIMARY KEY,
    tenant_id     TEXT   NOT NULL REFERENCES tenants (id),
    name          TEXT   NOT NULL,
    name_fold     TEXT   NOT NULL,
    location_id   TEXT   NOT NULL REFERENCES locations (id),
    limit_bytes   BIGINT NOT NULL,
    used_bytes    BIGINT NOT NULL CHECK (used_bytes >= 0),
    pending_bytes BIGINT NOT NULL CHECK (pending_bytes >= 0),
    chunk_size    BIGINT NOT NULL,
    created       BIGINT NOT NULL,
    updated       BIGINT NOT NULL,
    version       BIGINT NOT NULL,
    retired       BIGINT NOT NULL, -- 0: in use
    backups       TEXT   NOT NULL
);
CREATE UNIQUE INDEX cloud_repositories_name ON cloud_repositories (tenant_id, name_fold) WHERE retired = 0;
CREATE INDEX cloud_repositories_location ON cloud_repositories (location_id);

CREATE TABLE reservations (
    repository_id TEXT   NOT NULL REFERENCES cloud_repositories (id) ON DELETE CASCADE,
    session       TEXT   NOT NULL,
    bytes         BIGINT NOT NULL CHECK (bytes >= 0),
    expires       BIGINT NOT NULL,
    PRIMARY KEY (repository_id, session)
);
CREATE INDEX reservations_expires ON reservations (expires);

-- +goose Down
DROP TABLE reservations;
DROP TABLE cloud_repositories;
DROP TABLE locations;
DROP TABLE server_certificates;
DROP TABLE authorities;
DROP TABLE enrolments;
DROP TABLE agents;
DROP TABLE tokens;
DROP TABLE users;
DROP TABLE tenants;
