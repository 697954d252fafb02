package api

import "github.com/danielgtaylor/huma/v2"

// Agent is what the operations of the agent call.
type Agent struct{}

// agentRows has a row for every operation of the agent.
var agentRows = map[string]Row{}

// registerAgent registers the operations of the agent, below /v1/site.
func registerAgent(h huma.API, a *Agent) {
	_, _ = h, a
}
