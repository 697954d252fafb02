// Package pluginv1 is what protoc made of the frozen plugin.proto, with one
// change by hand, at the end of plugin.pb.go: its types are registered in
// registries of their own. So they can live in one process with those of
// today, which have the same names.
package pluginv1
