-- Other machines that run plugins for the site, and the authority that issues their certificates.
-- +goose Up
CREATE TABLE authorities (
    slot        TEXT   PRIMARY KEY, -- 'current'
    id          TEXT   NOT NULL,
    certificate BYTEA  NOT NULL,
    sealed_key  BYTEA  NOT NULL,
    created     BIGINT NOT NULL
);

CREATE TABLE workers (
    id        TEXT   PRIMARY KEY,
    name      TEXT   NOT NULL,
    name_fold TEXT   NOT NULL UNIQUE,
    hash      TEXT   NOT NULL UNIQUE, -- of the last invitation's token
    token_key TEXT   NOT NULL,        -- the key that redeemed it, empty for none
    invited   BIGINT NOT NULL,
    expires   BIGINT NOT NULL,
    key       TEXT   NOT NULL,        -- of its certificates, empty before it enrolled
    enrolled  BIGINT NOT NULL
);

-- +goose Down
DROP TABLE workers;
DROP TABLE authorities;
