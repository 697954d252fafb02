-- What agents tell of their runs: the newest state of each.
-- +goose Up
CREATE TABLE reports (
    tenant_id TEXT   NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    run_id    TEXT   NOT NULL,
    agent_id  TEXT   NOT NULL,
    sequence  BIGINT NOT NULL,
    started   BIGINT NOT NULL,
    received  BIGINT NOT NULL,
    event     TEXT   NOT NULL, -- JSON of gateway.RunEvent
    PRIMARY KEY (tenant_id, run_id)
);
CREATE INDEX reports_started ON reports (tenant_id, started);

-- +goose Down
DROP TABLE reports;
