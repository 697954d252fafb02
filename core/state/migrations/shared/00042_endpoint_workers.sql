-- Where an endpoint's plugin runs: the names of workers in their order, as a JSON array. Empty: on the machine itself.
-- +goose Up
ALTER TABLE endpoints ADD COLUMN workers TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE endpoints DROP COLUMN workers;
