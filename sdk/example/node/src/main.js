// holdfast-plugin-images: machines that are directories of raw disk images.
import { randomBytes } from 'node:crypto';
import { chmod } from 'node:fs/promises';
import { join } from 'node:path';
import { PluginError, toStatus } from './errors.js';
import { Images } from './images.js';
import { serveDisks } from './nbd.js';
import { log, serve, startedByHost } from './process.js';

const description = {
  name: 'images',
  version: '1.0.0',
  protocol: 1,
  abilities: ['source'],
  config: {
    fields: [{ name: 'dir', type: 'string', help: 'absolute path of a directory with a directory for each machine', required: true }],
  },
};

let images; // the endpoint, once Configure has opened it
const disks = new Map(); // the name of an export to the disk that the host has open
let listening;

// exported serves a disk and says where. Its name is the secret that lets the
// host, and nobody else, read it.
async function exported(disk) {
  const addr = join(process.env.PLUGIN_UNIX_SOCKET_DIR, 'data.sock');
  listening ??= serveDisks(addr, disks).then(() => chmod(addr, 0o600));
  await listening;
  const handle = randomBytes(24).toString('hex');
  disks.set(handle, disk);
  return { handle, size_bytes: disk.size, address: { network: 'unix', addr, export: handle, connections: 2 } };
}

function endpoint() {
  if (!images) throw new PluginError('invalid', 'holdfast', 'the plugin is not configured yet');
  return images;
}

// unary makes a gRPC handler of a function from a request to an answer.
const unary = (work) => (call, done) => {
  Promise.resolve(call.request).then(work).then(
    (answer) => done(null, answer ?? {}),
    (err) => {
      if (!(err instanceof PluginError)) log('ERROR', 'the plugin failed', { stack: err.stack });
      done(toStatus(err));
    },
  );
};

// Calls that are not here answer UNIMPLEMENTED, and a host does not make those
// of abilities that Configure did not name.
const implementation = {
  Describe: unary(() => ({ json: Buffer.from(JSON.stringify(description)) })),

  Configure: unary(async ({ settings }) => {
    if (images) throw new PluginError('invalid', 'holdfast', 'the plugin is configured already');
    images = await Images.open(JSON.parse(settings.toString() || '{}'));
    return { abilities: description.abilities };
  }),

  async Machines(call) {
    try {
      for await (const machine of endpoint().machines()) {
        if (call.cancelled) return;
        call.write({ machine });
      }
      call.end();
    } catch (err) {
      call.emit('error', toStatus(err));
    }
  },

  Probe: unary(async ({ machine, disk }) => {
    const report = { product: 'raw disk images', findings: [{ ability: 'source', works: true }] };
    if (!machine) return report;
    const { disks: known } = await endpoint().machine(machine);
    if (disk && !known.some((d) => d.id === disk)) {
      throw new PluginError('not-found', 'back-end', `machine ${machine} has no disk ${disk}`);
    }
    return report;
  }),

  // Nothing goes on after its call, so there is nothing to cancel.
  Cancel: unary(() => ({})),

  Snapshot: unary(async ({ op, machine, disks: wanted }) => {
    log('INFO', 'taking a snapshot', { machine, op: op.id });
    return { snapshot: await endpoint().snapshot(op, machine, wanted?.ids ?? null) };
  }),

  OpenDisk: unary(async ({ snapshot, disk }) => ({ disk: await exported(await endpoint().openDisk(snapshot, disk)) })),

  CloseDisk: unary(async ({ handle }) => {
    const disk = disks.get(handle);
    disks.delete(handle);
    await disk?.close();
  }),

  EndSnapshot: unary(({ op, snapshot }) => endpoint().endSnapshot(op, snapshot)),
};

async function main() {
  if (process.argv[2] === 'describe') {
    process.stdout.write(JSON.stringify(description, null, 2) + '\n');
  } else if (startedByHost()) {
    await serve(implementation);
  } else {
    process.stderr.write(`${description.name} ${description.version} is a Holdfast plugin: holdfast starts it.\nUsage: holdfast-plugin-${description.name} describe\n`);
    process.exitCode = 2;
  }
}

main().catch((err) => {
  log('ERROR', err.message);
  process.exit(1);
});
