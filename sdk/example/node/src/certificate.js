// A certificate of one process for its one life, as AutoMTLS wants it. Node can
// read X.509 but not write it, so this file writes the little DER that it takes.
import { generateKeyPairSync, randomBytes, sign } from 'node:crypto';

function der(tag, ...parts) {
  const body = Buffer.concat(parts);
  if (body.length < 0x80) return Buffer.concat([Buffer.from([tag, body.length]), body]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  const digits = length.subarray(length.findIndex((b) => b !== 0));
  return Buffer.concat([Buffer.from([tag, 0x80 | digits.length]), digits, body]);
}

const sequence = (...parts) => der(0x30, ...parts);
const oid = (hex) => der(0x06, Buffer.from(hex, 'hex'));
const time = (date) => der(0x18, Buffer.from(date.toISOString().replace(/[-:T]|\..*/g, '') + 'Z'));

const ecdsaWithSHA256 = sequence(oid('2a8648ce3d040302'));
const localhost = Buffer.from('localhost');
const nameLocalhost = sequence(der(0x31, sequence(oid('550403'), der(0x0c, localhost)))); // CN=localhost
const subjectAltName = sequence(oid('551d11'), der(0x04, sequence(der(0x82, localhost))));

// newCertificate makes a key and a certificate for it, for the name localhost:
// that is the one that a host looks for.
export function newCertificate() {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const serial = randomBytes(16);
  serial[0] = (serial[0] & 0x7f) | 0x40; // positive, and without a leading zero
  const now = Date.now();
  const body = sequence(
    der(0xa0, der(0x02, Buffer.from([2]))), // version 3
    der(0x02, serial),
    ecdsaWithSHA256,
    nameLocalhost,
    sequence(time(new Date(now - 60_000)), time(new Date(now + 30 * 365 * 86_400_000))),
    nameLocalhost,
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(subjectAltName)),
  );
  const bytes = sequence(body, ecdsaWithSHA256, der(0x03, Buffer.from([0]), sign('sha256', body, privateKey)));
  const pem = `-----BEGIN CERTIFICATE-----\n${bytes.toString('base64').match(/.{1,64}/g).join('\n')}\n-----END CERTIFICATE-----\n`;
  return { der: bytes, pem, key: privateKey.export({ type: 'pkcs8', format: 'pem' }) };
}
