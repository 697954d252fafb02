-- What is in a cloud repository's packs and in no point yet: a part of its
-- pending_bytes, beside what sessions reserved.
-- +goose Up
ALTER TABLE cloud_repositories ADD COLUMN unreferenced_bytes BIGINT NOT NULL DEFAULT 0 CHECK (unreferenced_bytes >= 0);

-- +goose Down
ALTER TABLE cloud_repositories DROP COLUMN unreferenced_bytes;
