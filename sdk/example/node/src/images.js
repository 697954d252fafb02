// The back-end: a directory with a directory for each machine, and in that a
// file for each disk. A snapshot is a copy; what has to be remembered of a
// machine is in files, because a process may be killed at any time.
import { constants } from 'node:fs';
import { copyFile, mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { notFound, PluginError } from './errors.js';

const STATE = '.holdfast'; // where snapshots and records are, not a machine

export class Images {
  #dir;
  #turns = new Map(); // machine to the end of the last change that was asked for

  static async open(settings) {
    if (!isAbsolute(settings.dir)) {
      throw new PluginError('invalid', 'holdfast', `dir is ${settings.dir}`, 'give an absolute path: a plugin runs in the root directory');
    }
    try {
      await readdir(settings.dir);
    } catch (err) {
      throw new PluginError('unavailable', 'back-end', err.message, 'check the setting dir');
    }
    return new Images(settings.dir);
  }

  constructor(dir) {
    this.#dir = dir;
  }

  async *machines() {
    for (const entry of await readdir(this.#dir, { withFileTypes: true })) {
      if (entry.isDirectory() && entry.name !== STATE) yield await this.machine(entry.name);
    }
  }

  async machine(id) {
    if (!valid(id)) throw notFound(`machine ${id}`);
    let entries;
    try {
      entries = await readdir(join(this.#dir, id), { withFileTypes: true });
    } catch {
      throw notFound(`machine ${id}`);
    }
    const disks = [];
    for (const entry of entries.filter((e) => e.isFile())) {
      const { size } = await stat(join(this.#dir, id, entry.name));
      disks.push({ id: entry.name, name: entry.name, size_bytes: size, format: 'raw' });
    }
    return { id, name: id, state: 'off', disks };
  }

  async snapshot(op, machine, wanted) {
    return this.#change(op, machine, async (record) => {
      if (record.open && record.op === op.id) return record.open; // a repeat gets the same answer
      if (record.open && record.by === op.epoch) throw new PluginError('busy', 'holdfast', `machine ${machine} has an open snapshot`);
      if (record.open) await this.#save(machine, { epoch: op.epoch }); // a dead run's: its claim is older
      const described = await this.machine(machine);
      const disks = described.disks.filter((d) => !wanted || wanted.includes(d.id));
      if (wanted && disks.length !== wanted.length) throw notFound(`a disk of machine ${machine}`);

      const copies = this.#copies(machine); // an earlier attempt may have left some
      await rm(copies, { recursive: true, force: true });
      await mkdir(copies, { recursive: true });
      for (const disk of disks) {
        await copyFile(join(this.#dir, machine, disk.id), join(copies, disk.id), constants.COPYFILE_FICLONE);
      }
      record.open = {
        id: op.id,
        machine: { ...described, disks },
        achieved: 'none',
        note: 'This plugin cannot freeze file systems.',
        taken_micros: Date.now() * 1000,
      };
      Object.assign(record, { by: op.epoch, op: op.id });
      return record.open;
    });
  }

  // openDisk gives { size, read, close } of a disk of an open snapshot.
  async openDisk(snapshot, disk) {
    const { open: taken } = await this.#load(snapshot.machine.id);
    const known = taken?.id === snapshot.id && taken.machine.disks.find((d) => d.id === disk);
    if (!known) throw notFound(`disk ${disk} of snapshot ${snapshot.id}`);
    const file = await open(join(this.#copies(snapshot.machine.id), disk));
    return {
      size: known.size_bytes,
      close: () => file.close(),
      async read(buffer, offset) {
        for (let done = 0; done < buffer.length;) {
          const { bytesRead } = await file.read(buffer, done, buffer.length - done, offset + done);
          if (bytesRead === 0) throw new Error('the copy is shorter than its disk');
          done += bytesRead;
        }
      },
    };
  }

  async endSnapshot(op, snapshot) {
    const machine = snapshot.machine.id;
    if ((await this.#load(machine)).open?.id !== snapshot.id) return; // it has ended
    await this.#change(op, machine, async (record) => {
      if (record.open?.id !== snapshot.id) return;
      for (const key of ['open', 'by', 'op']) delete record[key];
      await rm(this.#copies(machine), { recursive: true, force: true });
    });
  }

  // #change does work on a machine for a mutating call: not for an older claim,
  // one at a time, and remembered at the end. Epochs are 64 bits: strings here.
  #change(op, machine, work) {
    const turn = (this.#turns.get(machine) ?? Promise.resolve()).catch(() => {}).then(async () => {
      if (!op.id) throw new PluginError('invalid', 'holdfast', 'an operation without an id');
      if (op.space) throw new PluginError('denied', 'holdfast', `machine ${machine} is not in the space ${op.space}`);
      await this.machine(machine);
      const record = await this.#load(machine);
      if (BigInt(op.epoch) < BigInt(record.epoch)) {
        throw new PluginError('fenced', 'holdfast', `machine ${machine} belongs to a newer claim`);
      }
      record.epoch = op.epoch;
      const answer = await work(record);
      await this.#save(machine, record);
      return answer;
    });
    this.#turns.set(machine, turn);
    return turn;
  }

  async #load(machine) {
    let text;
    try {
      if (valid(machine)) text = await readFile(this.#record(machine), 'utf8');
    } catch (err) {
      if (err.code !== 'ENOENT') throw err;
    }
    return text ? JSON.parse(text) : { epoch: '0' };
  }

  // #save replaces a record at once: who dies here leaves the old or the new one.
  async #save(machine, record) {
    await mkdir(join(this.#dir, STATE), { recursive: true });
    await writeFile(this.#record(machine) + '.new', JSON.stringify(record));
    await rename(this.#record(machine) + '.new', this.#record(machine));
  }

  #record = (machine) => join(this.#dir, STATE, `${machine}.json`);
  #copies = (machine) => join(this.#dir, STATE, `${machine}.snapshot`);
}

// valid keeps an id that was not ours from leading somewhere else.
const valid = (id) => id !== '' && id !== STATE && id !== '.' && id !== '..' && !id.includes('/') && !id.includes('\0');
