-- Back-ends and the plugins that drive them; a server and an agent both have some.
-- +goose Up
CREATE TABLE endpoints (
    id              TEXT  PRIMARY KEY,
    name            TEXT  NOT NULL,
    name_fold       TEXT  NOT NULL UNIQUE,
    plugin          TEXT  NOT NULL,
    sealed_settings BYTEA NOT NULL
);
CREATE TABLE plugins (
    plugin      TEXT   NOT NULL,
    arch        TEXT   NOT NULL,
    path        TEXT   NOT NULL,
    sha256      TEXT   NOT NULL,
    version     TEXT   NOT NULL,
    protocol    BIGINT NOT NULL,
    description TEXT   NOT NULL,
    enabled_at  BIGINT NOT NULL,
    PRIMARY KEY (plugin, arch)
);

-- +goose Down
DROP TABLE plugins;
DROP TABLE endpoints;
