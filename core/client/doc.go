// Package client is the REST client of Holdfast, generated from the committed
// OpenAPI document of core/api. It knows nothing else of ours. Streams of
// server-sent events are read by whoever calls: the generated operation hands
// out the response.
package client

//go:generate sh -c "go run ../api/document > ../api/openapi.json.new && mv ../api/openapi.json.new ../api/openapi.json"
//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config oapi-codegen.yaml ../api/openapi.json
