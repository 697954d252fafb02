// Makes one executable file of the plugin and everything that it imports, so
// that the checksum that an operator pins covers all of it but Node itself.
import { chmodSync } from 'node:fs';
import { build } from 'esbuild';

const outfile = process.argv[2] ?? 'holdfast-plugin-images';
await build({
  entryPoints: ['src/main.js'],
  outfile,
  bundle: true,
  platform: 'node',
  target: 'node18',
  format: 'cjs',
  loader: { '.proto': 'text' },
  // The host runs the very file that it has checked, under the name of an open
  // descriptor. Without the option Node would follow that name to the path, and
  // read what is there by then, with the package.json that is beside it.
  banner: { js: '#!/usr/bin/env -S node --preserve-symlinks-main' },
  legalComments: 'eof',
  logLevel: 'warning',
});
chmodSync(outfile, 0o755);
