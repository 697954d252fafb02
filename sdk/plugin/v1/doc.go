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
//
// testdata/promised.binpb holds everything that plugins and hosts may rely on,
// as a FileDescriptorSet. Generating adds to it what the protocol has gained;
// it fails, and so does every test run, if the .proto takes anything back.
package pluginv1

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative plugin.proto
//go:generate go test -count=1 -run ^TestProtocolKeepsItsPromises$ -record .
