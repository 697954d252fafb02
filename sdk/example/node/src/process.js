// What a host expects of a plugin process; sdk/plugin/PROTOCOL.md has all of it.
import * as grpc from '@grpc/grpc-js';
import { join } from 'node:path';
import { newCertificate } from './certificate.js';
import { controllerService, service } from './protocol.js';

const MAX_MESSAGE = 8 << 20;

// log writes one line of JSON to standard error, where the host reads it.
export function log(level, msg, fields = {}) {
  process.stderr.write(JSON.stringify({ time: new Date().toISOString(), level, msg, ...fields }) + '\n');
}

// startedByHost says whether a host started this process.
export const startedByHost = () => process.env.HOLDFAST_PLUGIN === 'a host started this process';

// serve makes the plugin reachable and says so on standard output. It ends the
// process when the host asks for it, or is no more.
export async function serve(implementation) {
  const { PLUGIN_CLIENT_CERT: host, PLUGIN_UNIX_SOCKET_DIR: dir, PLUGIN_PROTOCOL_VERSIONS: versions } = process.env;
  if (!host || !dir || !versions?.split(',').includes('1')) {
    throw new Error('a host gives its plugin a certificate and a directory, and speaks protocol 1; this one does not');
  }
  process.stdin.on('end', () => process.exit(0)).on('error', () => process.exit(0)).resume();

  const own = newCertificate();
  const server = new grpc.Server({
    'grpc.max_receive_message_length': MAX_MESSAGE,
    'grpc.max_send_message_length': MAX_MESSAGE,
  });
  server.addService(service, implementation);
  server.addService(controllerService, {
    Shutdown(_call, done) {
      done(null, {});
      server.tryShutdown(() => process.exit(0));
    },
  });
  const socket = join(dir, 'control.sock');
  const credentials = grpc.ServerCredentials.createSsl(
    Buffer.from(host), // the one client that may call
    [{ private_key: Buffer.from(own.key), cert_chain: Buffer.from(own.pem) }],
    true,
  );
  await new Promise((resolve, reject) => {
    server.bindAsync(`unix:${socket}`, credentials, (err) => (err ? reject(err) : resolve()));
  });
  const certificate = own.der.toString('base64').replace(/=+$/, '');
  process.stdout.write(`1|1|unix|${socket}|grpc|${certificate}\n`);
}
