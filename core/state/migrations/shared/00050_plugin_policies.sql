-- How closely the processes of an enabled plugin are kept.
-- +goose Up
ALTER TABLE plugins ADD COLUMN policy TEXT NOT NULL DEFAULT '{}';

-- +goose Down
ALTER TABLE plugins DROP COLUMN policy;
