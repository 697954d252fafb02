package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/agent"
)

// maxKitBody is room for the largest kit in base64.
const maxKitBody = 8 << 20

type siteExportKitInput struct {
	Body struct {
		Provider   string `json:"provider,omitempty" maxLength:"128" doc:"May be left out with one provider only"`
		Passphrase string `json:"passphrase,omitempty" maxLength:"1024" writeOnly:"true" doc:"Encrypts the kit; without it the file opens every backup by itself"`
	}
}

type siteAcceptKitInput struct {
	Body struct {
		SHA256 string `json:"sha256" minLength:"64" maxLength:"64" doc:"Of the file as it was read back from where it is kept"`
	}
}

type siteDeclineKitInput struct {
	Body struct {
		Provider string `json:"provider,omitempty" maxLength:"128" doc:"May be left out with one provider only"`
		Tenant   string `json:"tenant" minLength:"1" maxLength:"128" doc:"The tenant's name, in full: the confirmation"`
	}
}

type siteImportKitInput struct {
	Body struct {
		Kit        []byte `json:"kit" writeOnly:"true" doc:"The whole file, base64"`
		Passphrase string `json:"passphrase,omitempty" maxLength:"1024" writeOnly:"true"`
	}
}

type siteKeyOutput = struct{ Body agent.KeyStatus }

func registerKeys(h huma.API, a *Agent) {
	addLocal(h, huma.Operation{OperationID: "site-list-keys", Method: http.MethodGet, Path: "/v1/site/keys", Summary: "List keyrings"},
		func(ctx context.Context, _ *struct{}) (*struct{ Body []agent.KeyStatus }, error) {
			return siteList(a.Site.Keys(ctx))
		})
	addLocal(h, huma.Operation{OperationID: "site-export-kit", Method: http.MethodPost, Path: "/v1/site/keys/kit",
		Summary:     "Make a recovery kit of the current keyring",
		Description: "Makes the keyring if there is none. It comes into use when the kit is accepted. " + agent.LossWarning},
		func(ctx context.Context, in *siteExportKitInput) (*struct{ Body agent.ExportedKit }, error) {
			return siteBody(a.Site.ExportKit(ctx, in.Body.Provider, in.Body.Passphrase))
		})
	addLocal(h, huma.Operation{OperationID: "site-accept-kit", Method: http.MethodPost, Path: "/v1/site/keys/kit/accept",
		Summary: "Take the keyring into use, because its kit was written"},
		func(ctx context.Context, in *siteAcceptKitInput) (*siteKeyOutput, error) {
			return siteBody(a.Site.AcceptKit(ctx, in.Body.SHA256))
		})
	addLocal(h, huma.Operation{OperationID: "site-decline-kit", Method: http.MethodPost, Path: "/v1/site/keys/kit/decline",
		Summary: "Take the keyring into use without a recovery kit", Description: agent.LossWarning},
		func(ctx context.Context, in *siteDeclineKitInput) (*siteKeyOutput, error) {
			return siteBody(a.Site.DeclineKit(ctx, in.Body.Provider, in.Body.Tenant))
		})
	addLocal(h, huma.Operation{OperationID: "site-import-kit", Method: http.MethodPost, Path: "/v1/site/keys/import", MaxBodyBytes: maxKitBody,
		Summary:     "Take a recovery kit's keyring",
		Description: "For new backups too if the site has no keyring in use yet, else only to read old ones."},
		func(ctx context.Context, in *siteImportKitInput) (*siteKeyOutput, error) {
			return siteBody(a.Site.ImportKit(ctx, in.Body.Kit, in.Body.Passphrase))
		})
}
