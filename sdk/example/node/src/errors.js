// Errors keep their meaning across the process border: the sentinel, whose
// fault it is, and a hint travel among the details of the gRPC status.
import * as grpc from '@grpc/grpc-js';
import protobuf from 'protobufjs';
import { types } from './protocol.js';

const { Status } = protobuf.parse(`syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; } // google.rpc.Status
`, { keepCase: true }).root.nested;

// PluginError is an sdk.Error: a code of sdk/errors.go, or '' for none.
export class PluginError extends Error {
  constructor(code, fault, message, hint = '') {
    super(message);
    Object.assign(this, { code, fault, hint });
  }
}

export const notFound = (what) => new PluginError('not-found', 'back-end', what);

// toStatus is what grpc-js takes for an error. Any that is no PluginError is
// the plugin's own fault.
export function toStatus(err) {
  const known = err instanceof PluginError;
  const value = types.Error.encode(types.Error.fromObject({
    codes: known && err.code ? [err.code] : [],
    fault: known ? err.fault : 'plugin',
    message: String(err.message).slice(0, 1024), // the whole has to fit into one HTTP/2 trailer
    hint: known ? err.hint.slice(0, 256) : '',
  })).finish();
  const metadata = new grpc.Metadata();
  metadata.set('grpc-status-details-bin', Buffer.from(Status.encode({
    code: grpc.status.UNKNOWN,
    message: 'plugin error',
    details: [{ type_url: 'type.googleapis.com/holdfast.plugin.v1.Error', value }],
  }).finish()));
  return { code: grpc.status.UNKNOWN, details: 'plugin error', metadata };
}
