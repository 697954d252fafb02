package plugin

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/metadata"
)

// Labels say on whose behalf calls are made, such as the tenant and the run.
// They travel beside each call as gRPC metadata, holdfast-label-NAME, so that a
// plugin's log lines can be found again. No plugin has to read them.
const (
	labelPrefix   = "holdfast-label-"
	maxLabels     = 8
	maxLabelName  = 32
	maxLabelValue = 128
)

type label struct{ name, value string }

// WithLabel adds a label to the calls made with the context: in a plugin, Log
// adds it to each line. The name has lower-case letters and underscores. What
// cannot be a label, because it is empty, too long or not printable ASCII, is
// left out, and so is a ninth one.
func WithLabel(ctx context.Context, name, value string) context.Context {
	labels, _ := metadata.FromOutgoingContext(ctx)
	if !validLabel(name, value) || len(labels) >= maxLabels {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, labelPrefix+name, value)
}

func validLabel(name, value string) bool {
	if name == "" || len(name) > maxLabelName || value == "" || len(value) > maxLabelValue {
		return false
	}
	foreign := func(r rune) bool { return r < ' ' || r > '~' }
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") == "" && strings.IndexFunc(value, foreign) < 0
}

// labelsOf are the labels of a call that arrived, and, in a host, of one that
// is to be made.
func labelsOf(ctx context.Context) []label {
	pairs, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		pairs, _ = metadata.FromOutgoingContext(ctx)
	}
	var labels []label
	for key, values := range pairs {
		name, ok := strings.CutPrefix(key, labelPrefix)
		if ok && len(values) > 0 && validLabel(name, values[0]) && len(labels) < maxLabels {
			labels = append(labels, label{name, values[0]})
		}
	}
	slices.SortFunc(labels, func(a, b label) int { return strings.Compare(a.name, b.name) })
	return labels
}

// Labels are the labels of a context, by name, for hosts that log calls.
func Labels(ctx context.Context) map[string]string {
	labels := make(map[string]string)
	for _, l := range labelsOf(ctx) {
		labels[l.name] = l.value
	}
	return labels
}
