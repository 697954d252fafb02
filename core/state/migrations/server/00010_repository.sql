-- What the database knows of cloud repositories' content: points, packs to be
-- deleted, records found damaged. The store is the truth of all but condemned.
-- +goose Up
CREATE TABLE points (
    repository_id TEXT   NOT NULL REFERENCES cloud_repositories (id),
    id            TEXT   NOT NULL,
    machine       TEXT   NOT NULL,
    previous      TEXT   NOT NULL,
    session       TEXT   NOT NULL,
    epoch         BIGINT NOT NULL, -- in the name of its manifest
    kind          TEXT   NOT NULL,
    taken         BIGINT NOT NULL,
    committed     BIGINT NOT NULL,
    disks         BIGINT NOT NULL,
    size_bytes    BIGINT NOT NULL,
    charged_bytes BIGINT NOT NULL,
    forgotten     BIGINT NOT NULL, -- 0: live; else in the bin since
    PRIMARY KEY (repository_id, id)
);
CREATE INDEX points_machine ON points (repository_id, machine, id);
CREATE INDEX points_session ON points (repository_id, session);
CREATE INDEX points_binned ON points (repository_id, id) WHERE forgotten > 0;

CREATE TABLE condemned_packs (
    repository_id TEXT   NOT NULL REFERENCES cloud_repositories (id) ON DELETE CASCADE,
    pack          TEXT   NOT NULL,
    condemned     BIGINT NOT NULL,
    PRIMARY KEY (repository_id, pack)
);

CREATE TABLE damaged_records (
    repository_id TEXT   NOT NULL REFERENCES cloud_repositories (id) ON DELETE CASCADE,
    pack          TEXT   NOT NULL,
    kind          BIGINT NOT NULL,
    id            TEXT   NOT NULL,
    found         BIGINT NOT NULL,
    PRIMARY KEY (repository_id, pack, kind, id)
);

-- +goose Down
DROP TABLE damaged_records;
DROP TABLE condemned_packs;
DROP TABLE points;
