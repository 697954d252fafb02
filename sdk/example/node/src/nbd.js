// A server of the network block device protocol: what a host needs to read a
// disk, and no more. https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
import { createServer } from 'node:net';

const OPTION = 0x49484156454f5054n; // IHAVEOPT
const REQUEST = 0x25609513;
const REPLY = 0x67446698;
const OPT_ABORT = 2, OPT_INFO = 6, OPT_GO = 7;
const REP_ACK = 1, REP_INFO = 3, REP_ERR_UNSUP = 0x80000001, REP_ERR_INVALID = 0x80000003, REP_ERR_UNKNOWN = 0x80000006;
const READ = 0, DISCONNECT = 2;
const EINVAL = 22, EIO = 5;
const HAS_FLAGS = 1, READ_ONLY = 2, MULTI_CONN = 256;

// Bounds of what a client may ask for.
const MAX_OPTION = 8 << 10;
const MAX_READ = 32 << 20;

// serveDisks listens on a unix socket. disks maps the name of an export, which
// nobody can guess, to { size, read(buffer, offset) }.
export function serveDisks(path, disks) {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => {
      socket.on('error', () => {}); // the client went away
      talk(socket, disks).catch(() => {}).finally(() => socket.destroy());
    });
    server.once('error', reject).listen(path, () => resolve(server));
  });
}

async function talk(socket, disks) {
  const take = taker(socket);
  await send(socket, Buffer.from('NBDMAGICIHAVEOPT'), u16(3)); // fixed newstyle, no padding
  await take(4); // the client's flags
  const disk = await negotiate(socket, take, disks);
  if (disk) await transmit(socket, take, disk);
}

// negotiate answers options until the client has chosen a disk.
async function negotiate(socket, take, disks) {
  for (;;) {
    const header = await take(16);
    const option = header.readUInt32BE(8), length = header.readUInt32BE(12);
    if (header.readBigUInt64BE(0) !== OPTION || length > MAX_OPTION) return null;
    const data = await take(length);
    const reply = (type, body = Buffer.alloc(0)) =>
      send(socket, Buffer.from('0003e889045565a9', 'hex'), u32(option), u32(type), u32(body.length), body);
    if (option === OPT_ABORT) {
      await reply(REP_ACK);
      return null;
    }
    if (option !== OPT_GO && option !== OPT_INFO) {
      await reply(REP_ERR_UNSUP); // TLS, structured replies, meta contexts: clients go on without
      continue;
    }
    if (length < 6 || data.readUInt32BE(0) > length - 6) {
      await reply(REP_ERR_INVALID);
      continue;
    }
    const disk = disks.get(data.toString('utf8', 4, 4 + data.readUInt32BE(0)));
    if (!disk) {
      await reply(REP_ERR_UNKNOWN);
      continue;
    }
    await reply(REP_INFO, Buffer.concat([u16(0), u64(BigInt(disk.size)), u16(HAS_FLAGS | READ_ONLY | MULTI_CONN)]));
    await reply(REP_ACK);
    if (option === OPT_GO) return disk;
  }
}

// transmit answers reads, one after the other.
async function transmit(socket, take, disk) {
  for (;;) {
    const request = await take(28);
    const command = request.readUInt16BE(6), cookie = request.subarray(8, 16);
    const offset = request.readBigUInt64BE(16), length = request.readUInt32BE(24);
    if (request.readUInt32BE(0) !== REQUEST || command === DISCONNECT || length > MAX_READ) return;
    const reply = (error, data = Buffer.alloc(0)) => send(socket, u32(REPLY), u32(error), cookie, data);
    if (command !== READ || offset + BigInt(length) > BigInt(disk.size)) {
      if (command === 1) return; // a write would bring data; the export is read-only
      await reply(EINVAL);
      continue;
    }
    const data = Buffer.alloc(length);
    let failed = false;
    try {
      await disk.read(data, Number(offset));
    } catch {
      failed = true;
    }
    await (failed ? reply(EIO) : reply(0, data));
  }
}

const u16 = (n) => { const b = Buffer.alloc(2); b.writeUInt16BE(n); return b; };
const u32 = (n) => { const b = Buffer.alloc(4); b.writeUInt32BE(n); return b; };
const u64 = (n) => { const b = Buffer.alloc(8); b.writeBigUInt64BE(n); return b; };

// send waits until the socket takes more, so that a slow reader costs no memory.
function send(socket, ...parts) {
  return new Promise((resolve, reject) => {
    socket.write(Buffer.concat(parts), (err) => (err ? reject(err) : resolve()));
  });
}

// taker gives exactly the bytes that it is asked for, and fails at the end.
function taker(socket) {
  let have = Buffer.alloc(0);
  const chunks = socket[Symbol.asyncIterator]();
  return async (n) => {
    while (have.length < n) {
      const { value, done } = await chunks.next();
      if (done) throw new Error('the client has closed the connection');
      have = Buffer.concat([have, value]);
    }
    const taken = have.subarray(0, n);
    have = have.subarray(n);
    return taken;
  };
}
