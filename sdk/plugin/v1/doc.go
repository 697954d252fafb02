// Package pluginv1 is protocol 1, generated from plugin.proto. Nobody but
// package plugin needs it; a plugin in another language is written against
// the .proto file.
//
// To generate it again: protoc of Debian's protobuf-compiler, and
//
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
//	go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
//
// in the PATH, then go generate ./sdk/plugin/v1.
package pluginv1

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative plugin.proto
