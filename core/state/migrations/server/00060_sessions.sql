-- Who brought what lies in a cloud repository: each record carries the id of
-- its session. Sessions from before this migration are not known.
-- +goose Up
CREATE TABLE repository_sessions (
    repository_id TEXT   NOT NULL REFERENCES cloud_repositories (id) ON DELETE CASCADE,
    id            TEXT   NOT NULL,
    owner         TEXT   NOT NULL, -- the agent; empty: not known
    machine       TEXT   NOT NULL,
    began         BIGINT NOT NULL,
    ended         BIGINT NOT NULL, -- 0: open
    distrusted    BIGINT NOT NULL, -- 0: trusted; else since
    PRIMARY KEY (repository_id, id)
);
CREATE INDEX repository_sessions_owner ON repository_sessions (repository_id, owner, id);
CREATE INDEX repository_sessions_open ON repository_sessions (repository_id, id) WHERE ended = 0;
CREATE INDEX repository_sessions_distrusted ON repository_sessions (repository_id, id) WHERE distrusted > 0;

-- +goose Down
DROP TABLE repository_sessions;
