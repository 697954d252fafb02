package api

// Idempotent is the header that makes a POST repeatable.
type Idempotent struct {
	Key string `header:"Idempotency-Key" maxLength:"128" doc:"Chosen by the caller; a repeated request with the same key and body is answered what the first one was"`
}
