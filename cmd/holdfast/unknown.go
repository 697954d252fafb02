package main

import (
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

// asUUID is an id as the client sends it, nothing for an empty one.
func asUUID(id string) *uuid.UUID {
	parsed, err := uuid.Parse(id)
	if err != nil {
		return nil
	}
	return &parsed
}

// shellWord quotes a word of a command that is printed to be copied.
func shellWord(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// listUnknown lists what lies in one or all of the provider's repositories and
// belongs to no cloud repository.
func listUnknown(cmd *cobra.Command, a *app, c *client.Client, name string) error {
	locations, err := read[[]client.Repository](c.ListRepositories(cmd.Context()))
	if name != "" && err == nil {
		var one client.Repository
		one, err = findRepository(cmd.Context(), c, name)
		locations = []client.Repository{one}
	}
	if err != nil {
		return err
	}
	names := map[string]string{}
	all := []client.UnknownRepository{}
	for _, l := range locations {
		names[l.Id] = l.Name
		for after := (*string)(nil); ; {
			page, err := read[client.UnknownPage](c.ListUnknownRepositories(cmd.Context(), l.Id, &client.ListUnknownRepositoriesParams{After: after}))
			if err != nil {
				return err
			}
			all = append(all, page.Items...)
			if after = page.Next; after == nil {
				break
			}
		}
	}
	type row = client.UnknownRepository
	least := func(r row, text string) string {
		if r.Partial {
			return "> " + text
		}
		return text
	}
	return list(a, all,
		column[row]{title: "repository", value: func(r row) string { return names[r.Repository] }},
		column[row]{title: "was tenant", value: func(r row) string { return deref(r.TenantName) }},
		column[row]{title: "was named", value: func(r row) string { return deref(r.Name) }},
		column[row]{title: "quota", value: func(r row) string {
			if r.LimitBytes == nil {
				return ""
			}
			return bytesText(*r.LimitBytes)
		}, right: true},
		column[row]{title: "points", value: func(r row) string { return least(r, strconv.FormatInt(r.Points, 10)) }, right: true},
		column[row]{title: "stored", value: func(r row) string { return least(r, bytesText(r.Bytes)) }, right: true},
		column[row]{title: "newest", value: func(r row) string { return timeText(timePointer(r.Newest)) }},
		column[row]{title: "id", value: func(r row) string { return r.Id }})
}
