#!/usr/bin/python3
"""Restores a disk of a point from a Holdfast directory repository.

An independent reader, written from FORMAT.md alone. It needs Python 3.11 and, of Debian's packages, python3-numpy,
python3-cryptography and python3-zstandard. BLAKE3, CRC-32C, age and the formats are its own. Everything that is read is
checked: checksums, the tenant's MAC, page hashes from the root down, seals, and the id of every chunk.

  holdfast_read.py STORE --identity FILE                                   lists the points
  holdfast_read.py STORE --identity FILE --point ID [--disk N] --out FILE  restores a disk
"""
import argparse, base64, hashlib, hmac, json, os, re, sys, uuid
from struct import unpack_from
import numpy as np
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

FORMAT, DATA, PAGE, ZERO = 1, 1, 2, bytes(32)


class Damaged(Exception):
    """The bytes are not what was written, or not what they claim to be."""

def require(true, what):
    if not true:
        raise Damaged(what)


# BLAKE3, many inputs of one length at once. Arrays are (words, lanes) of uint32.

IV = np.array([0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19], np.uint32)
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED = 1, 2, 4, 8, 16
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]

def rotate(x, n):
    return (x >> np.uint32(n)) | (x << np.uint32(32 - n))

def mix(a, b, c, d, x, y):
    a = a + b + x
    d = rotate(d ^ a, 16)
    c = c + d
    b = rotate(b ^ c, 12)
    a = a + b + y
    d = rotate(d ^ a, 8)
    c = c + d
    return a, rotate(b ^ c, 7), c, d

def compress(cv, block, counter, length, flags):
    lanes = block.shape[1]
    a, b = cv[:4], cv[4:]
    c = np.repeat(IV[:4, None], lanes, 1)
    d = np.empty((4, lanes), np.uint32)
    d[0], d[1], d[2], d[3] = counter & 0xFFFFFFFF, counter >> 32, length, flags
    order = list(range(16))
    for _ in range(7):
        m = block[order]
        a, b, c, d = mix(a, b, c, d, m[0:8:2], m[1:8:2])
        b, c, d = np.roll(b, -1, 0), np.roll(c, -2, 0), np.roll(d, -3, 0)
        a, b, c, d = mix(a, b, c, d, m[8:16:2], m[9:16:2])
        b, c, d = np.roll(b, 1, 0), np.roll(c, 2, 0), np.roll(d, 3, 0)
        order = [order[p] for p in PERMUTATION]
    return np.concatenate((a ^ c, b ^ d))

def leaves(data, first, length, key, flags, root):
    """Chaining values of BLAKE3 chunks: data is (lanes, length), length at most 1024."""
    lanes, blocks = data.shape[0], max(1, -(-length // 64))
    padded = np.zeros((lanes, blocks * 64), np.uint8)
    padded[:, :length] = data
    words = padded.view("<u4").reshape(lanes, blocks, 16).transpose(1, 2, 0)
    cv = np.repeat(key[:, None], lanes, 1)
    for i in range(blocks):
        last = i == blocks - 1
        f = flags | (CHUNK_START if i == 0 else 0) | (CHUNK_END if last else 0) | (ROOT if root and last else 0)
        cv = compress(cv, np.ascontiguousarray(words[i]), first, length - 64 * i if last else 64, f)
    return cv

def blake3_many(inputs, key=None):
    """BLAKE3 of several inputs of the same length; keyed with 32 bytes if there is a key."""
    count, length = len(inputs), len(inputs[0])
    words, flags = (np.frombuffer(key, "<u4"), KEYED) if key else (IV, 0)
    data = np.frombuffer(b"".join(inputs), np.uint8).reshape(count, length)
    if length <= 1024:
        cv = leaves(data, np.zeros(count, np.uint64), length, words, flags, True)
        return [bytes(h) for h in cv.T.astype("<u4").copy().view(np.uint8).reshape(count, 32)]
    whole = (length - 1) // 1024  # chunks before the last one
    counter = np.tile(np.arange(whole, dtype=np.uint64), count)
    cvs = leaves(data[:, : whole * 1024].reshape(count * whole, 1024), counter, 1024, words, flags, False)
    last = leaves(data[:, whole * 1024:], np.full(count, whole, np.uint64), length - whole * 1024, words, flags, False)
    level = np.concatenate((cvs.reshape(8, count, whole), last[:, :, None]), 2)
    while level.shape[2] > 1:
        pairs, odd = divmod(level.shape[2], 2)
        block = np.concatenate((level[:, :, 0:2 * pairs:2], level[:, :, 1:2 * pairs:2])).reshape(16, count * pairs)
        f = flags | PARENT | (ROOT if level.shape[2] == 2 else 0)
        key_cv = np.repeat(words[:, None], count * pairs, 1)
        up = compress(key_cv, block, np.zeros(count * pairs, np.uint64), 64, f).reshape(8, count, pairs)
        level = np.concatenate((up, level[:, :, -1:]), 2) if odd else up
    return [bytes(h) for h in level[:, :, 0].T.astype("<u4").copy().view(np.uint8).reshape(count, 32)]

def blake3(data, key=None):
    return blake3_many([data], key)[0]


# CRC-32C: long inputs in lanes that advance together, joined with a table that appends zeroes.

def crc_table():
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(0x82F63B78), table >> np.uint32(1))
    return table

CRC, LANE = crc_table(), 512
CRC_LIST = CRC.tolist()
SHIFT = (np.arange(256, dtype=np.uint32)[None, :] << (8 * np.arange(4, dtype=np.uint32))[:, None]).astype(np.uint32)
for _ in range(LANE):
    SHIFT = (SHIFT >> np.uint32(8)) ^ CRC[SHIFT & np.uint32(0xFF)]
SHIFT = SHIFT.tolist()

def crc32c(*parts):
    data = b"".join(parts)
    crc, lanes = 0xFFFFFFFF, len(data) // LANE
    if lanes:
        grid = np.frombuffer(data, np.uint8, lanes * LANE).reshape(lanes, LANE)
        state = np.zeros(lanes, np.uint32)
        for i in range(LANE):
            state = (state >> np.uint32(8)) ^ CRC[(state ^ grid[:, i]) & np.uint32(0xFF)]
        for s in state.tolist():
            crc = SHIFT[0][crc & 255] ^ SHIFT[1][crc >> 8 & 255] ^ SHIFT[2][crc >> 16 & 255] ^ SHIFT[3][crc >> 24] ^ s
    for byte in data[lanes * LANE:]:
        crc = (crc >> 8) ^ CRC_LIST[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def expand(key, info):
    """HKDF-Expand with SHA-256, 32 bytes."""
    return hmac.digest(key, info + b"\x01", "sha256")

def hkdf(key, salt, info):
    return expand(hmac.digest(salt or bytes(32), key, "sha256"), info)

def unbase64(text):
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)

BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"

def age_identity(path):
    """The X25519 scalar in an age identity file."""
    for line in open(path, encoding="ascii"):
        if not line.startswith("AGE-SECRET-KEY-1"):
            continue
        prefix, _, digits = line.strip().lower().rpartition("1")
        values = [BECH32.index(c) for c in digits]
        check = 1
        for v in [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + values:
            top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ v
            for i, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
                check ^= generator if top >> i & 1 else 0
        require(check == 1, "the age identity has a typing error")
        bits = "".join(f"{v:05b}" for v in values[:-6])
        return bytes(int(bits[i:i + 8], 2) for i in range(0, 256, 8))
    sys.exit(f"{path} holds no X25519 identity")

def age_decrypt(blob, scalar):
    """The plaintext of a binary age file, or None if it is for somebody else."""
    private = X25519PrivateKey.from_private_bytes(scalar)
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    match = re.match(rb"age-encryption\.org/v1\n((?:-> [^\n]*\n(?:[A-Za-z0-9+/]{64}\n)*[A-Za-z0-9+/]{0,63}\n)+)---( [^\n]*)\n", blob)
    require(match, "not an age file")
    file_key = None
    for stanza in re.finditer(rb"-> X25519 ([^ \n]+)\n([A-Za-z0-9+/]{43})\n", match[1]):
        share, body = unbase64(stanza[1]), unbase64(stanza[2])
        shared = private.exchange(X25519PublicKey.from_public_bytes(share))
        wrap_key = hkdf(shared, share + public, b"age-encryption.org/v1/X25519")
        try:
            file_key = ChaCha20Poly1305(wrap_key).decrypt(bytes(12), body, None)
            break
        except InvalidTag:
            continue  # another recipient's
    if file_key is None:
        return None
    header = blob[: match.end(1) + 3]
    mac = hmac.digest(hkdf(file_key, b"", b"header"), header, "sha256")
    require(hmac.compare_digest(mac, unbase64(match[2][1:])), "age header has another MAC")
    payload = blob[match.end():]
    cipher, payload, plain = ChaCha20Poly1305(hkdf(file_key, payload[:16], b"payload")), payload[16:], b""
    step = 65536 + 16
    for i, start in enumerate(range(0, len(payload), step)):
        last = start + step >= len(payload)
        plain += cipher.decrypt(i.to_bytes(11, "big") + bytes([last]), payload[start:start + step], None)
    return plain


class Keyring:
    def __init__(self, text):
        ring = json.loads(text)
        require(ring["format"] == FORMAT, "keyring of another format")
        self.id, self.mac = base64.b64decode(ring["id"]), base64.b64decode(ring["mac"])
        self.data = {d["number"]: base64.b64decode(d["key"]) for d in ring["data"]}
        digits = blake3(b"holdfast keyring 1" + self.id + self.mac)[:16].hex()
        self.fingerprint = "-".join(digits[i:i + 4] for i in range(0, 32, 4))

    def open(self, number, info, sealed, associated):
        require(number in self.data, f"the keyring has no data key {number}")
        try:
            return AESGCM(expand(self.data[number], info)).decrypt(sealed[:12], sealed[12:], associated)
        except InvalidTag:
            raise Damaged("a seal is broken") from None

def open_wrap(blob, scalar):
    require(len(blob) > 28 and blob[:4] == b"HFkr" and blob[4] == FORMAT and not any(blob[5:8]), "not a keyring wrap")
    require(unpack_from("<I", blob, 24)[0] == crc32c(blob[:24], blob[28:]), "keyring wrap fails its checksum")
    text = age_decrypt(blob[28:], scalar)
    if text is None:
        return None
    ring = Keyring(text)
    require(ring.fingerprint.replace("-", "") == blob[8:24].hex(), "keyring wrap names another keyring")
    return ring


# Records, packs, points.

class Record:
    def __init__(self, b, kind, wanted):
        require(len(b) > 72 and b[:4] == b"HFrc" and b[4] == FORMAT and b[5] == kind and b[7] == 0, "not a record")
        self.codec = b[6]
        self.plain, body, self.key, crc = unpack_from("<IIII", b, 8)
        self.id, self.body = b[40:72], b[72:]
        require(len(self.body) == body and crc == crc32c(b[:20], b[24:]), f"record {self.id.hex()} fails its checksum")
        require(self.id == wanted, f"record {wanted.hex()} is record {self.id.hex()}")

    def open(self, ring):
        """The plaintext of a chunk; its id is left to the caller."""
        associated = bytes([FORMAT, self.codec]) + self.plain.to_bytes(4, "little") + self.key.to_bytes(4, "little") + self.id
        plain = ring.open(self.key, b"holdfast chunk 1" + self.id, self.body, associated)
        if self.codec == 1:
            size = zstandard.get_frame_parameters(plain).content_size
            require(size in (self.plain, zstandard.CONTENTSIZE_UNKNOWN), "a frame has another length")
            plain = zstandard.ZstdDecompressor().decompress(plain, max_output_size=self.plain)
        require(self.codec in (0, 1) and len(plain) == self.plain, "a chunk has another length")
        return plain


class Repository:
    def __init__(self, root):
        self.root, self.places = root, {DATA: {}, PAGE: {}}
        self.id = os.path.basename(root)
        lines = open(os.path.join(root, "format"), "rb").read().splitlines(True)
        require(len(lines) == 2 and lines[1] == b"crc32c %08x\n" % crc32c(lines[0]), "format object fails its checksum")
        form = json.loads(lines[0])
        require(form["format"] == FORMAT and form["repository"] == self.id, "another format or repository")
        for kind, folder in ((DATA, "packs"), (PAGE, "maps")):
            for path in self.files(folder):
                self.footer(path, kind)

    def files(self, folder):
        for parent, _, names in os.walk(os.path.join(self.root, folder)):
            yield from (os.path.join(parent, name) for name in names)

    def footer(self, path, kind):
        """Remembers where a pack's records are."""
        pack = uuid.UUID(os.path.basename(path)).bytes
        with open(path, "rb") as f:
            head, size = f.read(32), f.seek(0, 2)
            f.seek(size - 40)
            tail = f.read()
            require(head[:4] == b"HFpk" and head[4:6] == bytes([FORMAT, kind]) and head[8:24] == pack, f"{path}: not a pack")
            require(unpack_from("<I", head, 28)[0] == crc32c(head[:28]), f"{path}: header fails its checksum")
            start, count, crc = unpack_from("<QII", tail)
            require(tail[36:] == b"HFpe" and unpack_from("<I", tail, 32)[0] == crc32c(tail[:32]) and tail[16:32] == pack, f"{path}: trailer")
            require(start + count * 72 + 40 == size, f"{path}: footer is not where it says")
            f.seek(start)
            entries = f.read(count * 72)
        require(crc == crc32c(entries), f"{path}: footer fails its checksum")
        for i in range(0, len(entries), 72):
            offset, length = unpack_from("<QI", entries, i + 32)
            self.places[kind].setdefault(entries[i:i + 32], []).append((path, offset, length))

    def record(self, kind, wanted):
        """Any copy of a record whose checksum holds."""
        problem = Damaged(f"record {wanted.hex()} is in no pack")
        for path, offset, length in self.places[kind].get(wanted, []):
            try:
                with open(path, "rb") as f:
                    f.seek(offset)
                    return Record(f.read(length), kind, wanted)
            except Damaged as damage:
                problem = damage
        raise problem

    def keyring(self, scalar, fingerprint):
        for path in self.files("keys"):
            ring = open_wrap(open(path, "rb").read(), scalar)
            if ring and fingerprint in (None, ring.fingerprint):
                return ring
        sys.exit("no wrap opens with this identity to the expected keyring")

    def manifests(self, ring):
        """The points: public part by id, checked."""
        newest = {}
        for path in self.files("points"):
            name = os.path.basename(path)
            if name.endswith(".void") or os.path.exists(path + ".void"):
                continue
            point, epoch = name.split(".")
            if not os.path.exists(os.path.join(self.root, "tombstones", point)):
                newest[point] = max(newest.get(point, (0, "")), (int(epoch), path))
        return {point: self.manifest(path, point, ring) for point, (_, path) in sorted(newest.items())}

    def manifest(self, path, point, ring):
        b = open(path, "rb").read()
        require(len(b) > 52 and b[:4] == b"HFmf" and b[4] == FORMAT and not any(b[5:8]), f"{path}: not a manifest")
        require(unpack_from("<I", b, len(b) - 4)[0] == crc32c(b[:-4]), f"{path}: checksum")
        p, s = unpack_from("<II", b, 8)
        require(16 + p + s + 36 == len(b), f"{path}: lengths")
        require(hmac.compare_digest(blake3(b[:-36], ring.mac), b[-36:-4]), f"{path}: not authenticated by the keyring")
        public = json.loads(b[16:16 + p])
        require(public["repository"] == self.id and public["point"] == point, f"{path}: manifest of something else")
        require(public["machine"] == os.path.basename(os.path.dirname(path)), f"{path}: manifest of another machine")
        require(public["format"] == FORMAT and public["keyring"] == ring.fingerprint, f"{path}: format or keyring")
        private = ring.open(public["key"], b"holdfast manifest 1" + point.encode(), b[16 + p:16 + p + s], b[16:16 + p])
        public["private"] = json.loads(private)
        return public

    def page(self, wanted, level, fan_out):
        record = self.record(PAGE, wanted)
        b, width = record.body, -(-fan_out // 8)
        require(blake3(b) == wanted, f"page {wanted.hex()} has other content")
        require(b[:4] == b"HFpg" and b[4] == FORMAT and b[5] == level and unpack_from("<H", b, 6)[0] == fan_out, "page at a wrong place")
        bits = [k for k in range(width * 8) if b[8 + k // 8] >> k % 8 & 1]
        require(bits and bits[-1] < fan_out and len(b) == 8 + width + 32 * len(bits), "page of another form")
        ids = [b[i:i + 32] for i in range(8 + width, len(b), 32)]
        require(ZERO not in ids, "page with a zero id")
        return list(zip(bits, ids))

    def walk(self, root, level, fan_out, first=0):
        """Index and id of every chunk that is not zero, in order."""
        for k, child in self.page(root, level, fan_out):
            start = first + k * fan_out ** level
            if level == 0:
                yield start, child
            else:
                yield from self.walk(child, level - 1, fan_out, start)

    def restore(self, point, disk, ring, out):
        size, root = point["disks"][disk]["size"], bytes.fromhex(point["disks"][disk]["root"])
        chunk_size, fan_out = point["chunk_size"], point["fan_out"]
        chunks, level = -(-size // chunk_size), 0
        while fan_out ** (level + 1) < chunks:
            level += 1
        out.truncate(size)
        batch = []
        for index, wanted in self.walk(root, level, fan_out) if root != ZERO else ():
            require(index < chunks, "a chunk beyond the end of the disk")
            plain = self.record(DATA, wanted).open(ring)
            require(len(plain) == min(chunk_size, size - index * chunk_size), "a chunk of another length")
            batch.append((index * chunk_size, wanted, plain))
            if len(batch) == 64:
                write(batch, ring, out)
                batch = []
        write(batch, ring, out)

def write(batch, ring, out):
    """Recomputes the ids of some chunks and writes them; equal lengths are hashed together."""
    for length in {len(plain) for _, _, plain in batch}:
        same = [item for item in batch if len(item[2]) == length]
        for (offset, wanted, plain), found in zip(same, blake3_many([item[2] for item in same], ring.id)):
            require(found == wanted, f"chunk {wanted.hex()} has the content of {found.hex()}")
            out.seek(offset)
            out.write(plain)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="the directory of a cloud repository; its name is the repository's id")
    parser.add_argument("--identity", required=True, help="age identity file of a recipient of the keyring")
    parser.add_argument("--fingerprint", help="of the keyring that is expected, from the recovery kit")
    parser.add_argument("--point")
    parser.add_argument("--disk", type=int, default=0)
    parser.add_argument("--out", help="raw image to write")
    args = parser.parse_args()
    repository = Repository(os.path.abspath(args.store))
    ring = repository.keyring(age_identity(args.identity), args.fingerprint)
    points = repository.manifests(ring)
    if not args.point:
        for point, p in points.items():
            print(point, p["machine"], p["taken"], p["private"]["machine"], *(d["size"] for d in p["disks"]))
        return
    if args.point not in points or not args.out:
        sys.exit("no such point, or no --out")
    with open(args.out, "xb") as out:
        repository.restore(points[args.point], args.disk, ring, out)
    print(hashlib.file_digest(open(args.out, "rb"), "sha256").hexdigest())


if __name__ == "__main__":
    try:
        main()
    except Damaged as damage:
        sys.exit(f"damaged: {damage}")
