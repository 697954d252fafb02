package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

func auditCommand(a *app) *cobra.Command {
	var tenant, action, actor, target, since string
	var limit int64
	cmd := &cobra.Command{
		Use: "audit", Short: "Who did what: the newest entries, or a proof that nothing was changed",
		Long: `Show the newest entries of the audit log. There is one chain of entries for the provider and one for each tenant; an entry
carries the hash of the one before it, so that nothing can be removed or changed unseen: holdfast audit verify.`,
		Example: `  holdfast audit
  holdfast audit --tenant Acme --action tenant.disable
  holdfast audit verify --tenant Acme`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := scope(cmd.Context(), c, tenant)
			if err != nil {
				return err
			}
			newest := true
			params := &client.ListAuditParams{Tenant: given(id), Newest: &newest, Action: given(action), Actor: given(actor), Target: given(target), Limit: &limit}
			if since != "" {
				from, err := parseDate(since)
				if err != nil {
					return usagef(cmd, "%v", err)
				}
				if len(since) == len("2006-01-02") {
					from = from.AddDate(0, 0, -1) // the whole of that day
				}
				params.Since = &from
			}
			page, err := read[client.AuditPage](c.ListAudit(cmd.Context(), params))
			if err != nil {
				return err
			}
			type row = client.AuditEntry
			return list(a, page.Items,
				column[row]{title: "no", value: func(e row) string { return strconv.FormatInt(e.Sequence, 10) }, right: true},
				column[row]{title: "time", value: func(e row) string { return timeText(e.Time) }},
				column[row]{title: "who", value: func(e row) string {
					if name := deref(e.Name); name != "" {
						return name
					}
					return e.Actor
				}},
				column[row]{title: "action", value: func(e row) string { return e.Action }},
				column[row]{title: "target", value: func(e row) string { return e.Target }},
				column[row]{title: "reason", value: func(e row) string { return deref(e.Reason) }})
		},
	}
	a.tenantFlag(cmd, &tenant, "whose chain (default the provider's)")
	flags := cmd.Flags()
	flags.StringVar(&action, "action", "", "only this action")
	flags.StringVar(&actor, "actor", "", "only by user:ID, agent:ID or system:PART")
	flags.StringVar(&target, "target", "", "only about this")
	flags.StringVar(&since, "since", "", "since this day, YYYY-MM-DD, or moment")
	flags.Int64Var(&limit, "limit", 50, "at most so many entries, up to 1000")
	cmd.AddCommand(auditVerifyCommand(a))
	return cmd
}

func auditVerifyCommand(a *app) *cobra.Command {
	var tenant, head string
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that a chain is whole",
		Long: `Check that every entry of a chain fits the one before it. A chain that was cut at its end is whole in itself: keep the head
that this prints, and give it to the next check with --head.`,
		Example: "  holdfast audit verify --tenant Acme", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := scope(cmd.Context(), c, tenant)
			if err != nil {
				return err
			}
			proof, err := read[client.AuditProof](c.VerifyAudit(cmd.Context(), &client.VerifyAuditParams{Tenant: given(id)}))
			if err != nil {
				return err
			}
			if err := show(a, proof, field{"whole", yesNo(proof.Whole)}, field{"entries", strconv.FormatInt(proof.Entries, 10)}, field{"head", proof.Head},
				field{"fault", deref(proof.Fault)}); err != nil {
				return err
			}
			if !proof.Whole {
				return withHint(errors.New(deref(proof.Fault)), "somebody with access to the database changed it; keep it as evidence")
			}
			if head == "" || head == proof.Head {
				return nil
			}
			return knownHead(cmd, c, id, head)
		},
	}
	a.tenantFlag(cmd, &tenant, "whose chain (default the provider's)")
	cmd.Flags().StringVar(&head, "head", "", "the head of an earlier check, which must still be in the chain")
	return cmd
}

// knownHead looks for the entry with a hash in a chain.
func knownHead(cmd *cobra.Command, c *client.Client, tenant, head string) error {
	limit := int64(1000)
	for after := int64(0); ; {
		page, err := read[client.AuditPage](c.ListAudit(cmd.Context(), &client.ListAuditParams{Tenant: given(tenant), After: &after, Limit: &limit}))
		if err != nil {
			return err
		}
		for _, e := range page.Items {
			if e.Hash == head {
				return nil
			}
		}
		if page.Next == nil {
			return withHint(fmt.Errorf("the entry %s is not in the chain any more", head), "the chain was replaced or cut; keep the database as evidence")
		}
		after = *page.Next
	}
}
