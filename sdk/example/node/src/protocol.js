// Protocol 1, from the .proto of the SDK, which is bundled as text.
import * as grpc from '@grpc/grpc-js';
import { fromJSON } from '@grpc/proto-loader';
import Long from 'long';
import protobuf from 'protobufjs';
import source from '../../../plugin/v1/plugin.proto';

protobuf.util.Long = Long; // int64 and uint64 do not fit into a number
protobuf.configure();

const { root } = protobuf.parse(source, { keepCase: true });
const options = { keepCase: true, longs: String, defaults: true, arrays: true, objects: true };
const definition = fromJSON(root.toJSON(), options);

export const types = root.lookup('holdfast.plugin.v1').nested;
export const { service } = grpc.loadPackageDefinition(definition).holdfast.plugin.v1.PluginService;

// Controller is the one service of go-plugin that a plugin has to have.
const controller = protobuf.parse(`syntax = "proto3";
  package plugin;
  message Empty {}
  service GRPCController { rpc Shutdown(Empty) returns (Empty); }
`, { keepCase: true }).root;
export const controllerService = grpc.loadPackageDefinition(fromJSON(controller.toJSON(), options)).plugin.GRPCController.service;
