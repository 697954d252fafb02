// Command document writes the OpenAPI document of package api to standard
// output. It imports nothing but the API, so it builds while the client that
// is generated from the document does not fit it yet.
package main

import (
	"fmt"
	"os"

	"github.com/holdfast-dr/holdfast/core/api"
)

func main() {
	document, err := api.Document()
	if err == nil {
		_, err = os.Stdout.Write(document)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "document:", err)
		os.Exit(1)
	}
}
