#!/usr/bin/env python3
"""A second implementation of docs/format.md, written from that page alone and sharing no code with snowmelt.

usage: read_image.py --store DIR --keys DIR [--tenant NAME] NAME[:TAG] OUTPUT
           finds the image, verifies and decrypts all of it, and writes its block image to OUTPUT, which must not exist
       read_image.py --vectors DIR
           checks the test vectors in DIR

Run it with the interpreter that scripts/python-env prints. It exits with 1 and says why when anything is wrong.
"""

import argparse
import hashlib
import json
import os
import re
import stat
import struct
import sys

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PAGE = 4096
HEADER = struct.Struct("<8s H B B I Q Q Q H H H 10s")
RECORD = struct.Struct("<I I 32s")
NONCE, TAG, KEY = 12, 16, 32
MAX_CHUNK, MAX_IMAGE, MAX_METADATA = 64 << 20, 16 << 40, 8 << 20
SHA256_CTR, BLAKE3_GCM = 1, 2
SUITES = {"sha256-ctr": SHA256_CTR, "blake3-gcm": BLAKE3_GCM}
SCOPES = {"everyone": 0, "tenant": 1, "layer": 2}


class Refused(Exception):
    """What a reader refuses; `kind` is bad_manifest, unsupported, unauthentic, no_key, bad_chunk or invalid."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


# --- primitives


def hkdf(salt, secret, info):
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(secret)


def gcm_open(key, nonce, sealed, associated, error):
    try:
        return AESGCM(key).decrypt(nonce, sealed, associated)
    except InvalidTag:
        raise error from None


def ctr(key, data):
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return cipher.update(data) + cipher.finalize()


# --- chunks


def trim(slot):
    """The slot without its trailing pages of zeros."""
    length = len(slot)
    while length and not any(slot[length - PAGE:length]):
        length -= PAGE
    return slot[:length]


def chunk_id(suite, ciphertext):
    return (blake3 if suite == BLAKE3_GCM else hashlib.sha256)(ciphertext).digest()


def seal_chunk(suite, salt, plaintext):
    """Gives (key, tag, id, ciphertext)."""
    if suite == BLAKE3_GCM:
        key = blake3(plaintext, key=salt).digest()
        sealed = AESGCM(key).encrypt(bytes(NONCE), plaintext, None)
        ciphertext, tag = sealed[:-TAG], sealed[-TAG:]
    else:
        key = hkdf(salt, hashlib.sha256(plaintext).digest(), b"snowmelt chunk key v1")
        ciphertext, tag = ctr(key, plaintext), b""
    return key, tag, chunk_id(suite, ciphertext), ciphertext


def open_chunk(suite, record, secret, ciphertext):
    """Checks length, id and tag of a stored chunk and decrypts it."""
    _, length, name = record
    key, tag = secret
    if len(ciphertext) != length:
        raise Refused("bad_chunk", f"chunk {name.hex()} has {len(ciphertext)} bytes rather than {length}")
    if chunk_id(suite, ciphertext) != name:
        raise Refused("bad_chunk", f"chunk {name.hex()} is damaged: its bytes are not those that its id names")
    if suite == BLAKE3_GCM:
        error = Refused("bad_chunk", f"chunk {name.hex()} is damaged: its tag does not match")
        return gcm_open(key, bytes(NONCE), ciphertext + tag, None, error)
    return ctr(key, ciphertext)


# --- salts


def salt_info(root, epoch, chunk_class, scope, name):
    info = b"snowmelt salt v1" + struct.pack("<IB", epoch, SCOPES[scope])
    for field in (root, chunk_class, name):
        encoded = field.encode()
        info += struct.pack("<Q", len(encoded)) + encoded
    return info


# --- keys


def parse_key_file(text, path):
    # One line feed or none; anything else is not what was written.
    if not re.fullmatch(r"[0-9a-f]{64}\s*", text):
        raise Refused("invalid", f"the key file {path} does not hold 64 hexadecimal digits")
    return bytes.fromhex(text.strip())


def read_tenant_key(folder, tenant, named):
    key = read_key_file(folder, tenant + ".key")
    # One from before a rotation has its id in its name.
    if key_id(key) != named and re.fullmatch("local:[0-9a-f]{16}", named):
        key = read_key_file(folder, f"{tenant}.{named.removeprefix('local:')}.key")
    return key


def read_key_file(folder, name):
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise Refused("invalid", f"the key file {path} may be read by others")
            return parse_key_file(file.read(80), path)
    except FileNotFoundError:
        raise Refused("no_key", f"there is no key file {path}") from None


def key_id(tenant_key):
    return "local:" + hkdf(b"", tenant_key, b"snowmelt key id v1")[:8].hex()


def unwrap(tenant, tenant_key, named, wrapped):
    if key_id(tenant_key) != named:
        raise Refused("no_key", f"the manifest needs key {named} of tenant {tenant!r}; here is {key_id(tenant_key)}")
    error = Refused("unauthentic", f"the data key of tenant {tenant!r} does not unwrap: the manifest was changed")
    if len(wrapped) != NONCE + KEY + TAG:
        raise error
    return gcm_open(tenant_key, wrapped[:NONCE], wrapped[NONCE:], b"snowmelt data key v1 " + tenant.encode(), error)


# --- manifests


def bad(message):
    return Refused("bad_manifest", f"the manifest is not valid: {message}")


class Manifest:
    """The clear part of an encoded manifest, checked."""

    def __init__(self, encoded):
        self.id = blake3(encoded).digest()
        if encoded[:8] != b"SNOWMELT":
            raise bad("it does not begin with SNOWMELT")
        if len(encoded) < HEADER.size:
            raise bad("it is truncated")
        (_, version, self.suite, zero, self.chunk_size, self.image_size, count, sealed_length, tenant_length,
         key_id_length, wrapped_length, zeros) = HEADER.unpack_from(encoded)
        if version != 1:
            raise Refused("unsupported", f"the manifest is of version {version}")
        if self.suite not in (SHA256_CTR, BLAKE3_GCM):
            raise Refused("unsupported", f"the manifest is of suite {self.suite}")
        if zero or any(zeros):
            raise bad("its reserved bytes are not zero")
        size = self.chunk_size
        if not PAGE <= size <= MAX_CHUNK or size & (size - 1):
            raise bad(f"a chunk size of {size}")
        if self.image_size % PAGE or self.image_size > MAX_IMAGE:
            raise bad(f"an image size of {self.image_size}")
        slots = -(-self.image_size // size)
        if slots > 0xFFFFFFFF or count > slots:
            raise bad(f"{count} chunks in {slots} slots")
        self.secret_bytes = KEY + (TAG if self.suite == BLAKE3_GCM else 0)
        table = count * self.secret_bytes
        names_end = HEADER.size + tenant_length + key_id_length + wrapped_length
        clear_end = names_end + count * RECORD.size
        if clear_end + sealed_length != len(encoded):
            raise bad("its length is not what its header says")
        if not 0 <= sealed_length - table - NONCE - TAG <= MAX_METADATA:
            raise bad("its sealed part cannot hold the keys of its chunks")
        self.clear, self.sealed = encoded[:clear_end], encoded[clear_end:]
        names = encoded[HEADER.size:names_end]
        try:
            self.tenant = names[:tenant_length].decode()
            self.key_id = names[tenant_length:tenant_length + key_id_length].decode()
        except UnicodeDecodeError:
            raise bad("a name in it is not UTF-8") from None
        self.wrapped = names[tenant_length + key_id_length:]
        self.records = [RECORD.unpack_from(encoded, names_end + index * RECORD.size) for index in range(count)]
        last = -1
        for slot, length, _ in self.records:
            if not last < slot < slots:
                raise bad(f"chunk {slot} is out of order or outside of the image")
            last = slot
            if not 0 < length <= min(size, self.image_size - slot * size) or length % PAGE:
                raise bad(f"chunk {slot} has a stored length of {length}")

    def open(self, data_key):
        """Gives the (key, tag) of every record, and the metadata."""
        error = Refused("unauthentic", "the manifest was changed after it was sealed, or this is not its key")
        opened = gcm_open(data_key, self.sealed[:NONCE], self.sealed[NONCE:], self.clear, error)
        end = len(self.records) * self.secret_bytes
        entries = [opened[at:at + self.secret_bytes] for at in range(0, end, self.secret_bytes)]
        return [(entry[:KEY], entry[KEY:]) for entry in entries], opened[end:]


# --- images in a store

TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
ROOT = re.compile(r"[a-z0-9-]{1,64}")
COMPONENT = r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?"
NAME = re.compile(rf"{COMPONENT}(/{COMPONENT})*")
TAG_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def read_object(store, *parts):
    path = os.path.join(store, *parts)
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise Refused("invalid", f"{path} is missing") from None


def read_image(store, keys, tenant, image, output):
    name, _, tag = image.partition(":")
    tag = tag or "latest"
    if not (TENANT.fullmatch(tenant) and NAME.fullmatch(name) and TAG_NAME.fullmatch(tag)):
        raise Refused("invalid", f"{tenant!r}, {image!r}: not the names of a tenant and an image")
    record = json.loads(read_object(store, "names", tenant, name.replace("/", "+"), tag))
    root, wanted = record["root"], record["manifest"]
    if record["version"] != 1:
        raise Refused("unsupported", f"the name's record is of version {record['version']}")
    if not (ROOT.fullmatch(root) and re.fullmatch("[0-9a-f]{64}", wanted)):
        raise Refused("invalid", "the name's record names no root or no manifest")

    encoded = read_object(store, "roots", root, "manifests", tenant, wanted)
    if blake3(encoded).hexdigest() != wanted:
        raise Refused("bad_manifest", f"manifest {wanted} is damaged: its bytes are not those that its id names")
    manifest = Manifest(encoded)
    if manifest.tenant != tenant:
        raise Refused("bad_manifest", f"manifest {wanted} belongs to tenant {manifest.tenant!r}")
    if (record["image_size"], record["chunk_count"]) != (manifest.image_size, len(manifest.records)):
        raise Refused("invalid", "the name's record does not agree with its manifest")
    stored = sum(length for _, length, _ in manifest.records)
    if record["stored_bytes"] != stored:
        raise Refused("invalid", f"the name's record counts {record['stored_bytes']} stored bytes rather than {stored}")
    data_key = unwrap(tenant, read_tenant_key(keys, tenant, manifest.key_id), manifest.key_id, manifest.wrapped)
    secrets, metadata = manifest.open(data_key)
    metadata = json.loads(metadata)
    if not {"config", "source_digest", "content_bytes"} <= metadata.keys():
        raise Refused("invalid", "the metadata is not that of an image")

    with open(output, "xb") as file:
        try:
            file.truncate(manifest.image_size)
            for chunk, secret in zip(manifest.records, secrets):
                digits = chunk[2].hex()
                ciphertext = read_object(store, "roots", root, "chunks", digits[:2], digits)
                file.seek(chunk[0] * manifest.chunk_size)
                file.write(open_chunk(manifest.suite, chunk, secret, ciphertext))
        except BaseException:
            os.unlink(output)
            raise


# --- test vectors


def check(what, found, expected):
    if found != expected:
        raise Refused("invalid", f"{what}: found {found!r}, expected {expected!r}")


def expand(pieces):
    """The bytes that a vector describes: zeros, and the output of BLAKE3 in its extendable mode for a text."""
    return b"".join(
        bytes(piece["zeros"]) if "zeros" in piece else blake3(piece["xof"].encode()).digest(length=piece["bytes"])
        for piece in pieces)


def check_suite(case):
    plaintext = trim(expand(case["slot"]))
    check("stored_length", len(plaintext), case["stored_length"])
    if not plaintext:
        return
    suite, salt = SUITES[case["suite"]], bytes.fromhex(case["salt"])
    key, tag, name, ciphertext = seal_chunk(suite, salt, plaintext)
    check("key", key.hex(), case["key"])
    check("tag", tag.hex(), case["tag"])
    check("id", name.hex(), case["id"])
    check("ciphertext_start", ciphertext[:32].hex(), case["ciphertext_start"])
    check("plaintext", open_chunk(suite, (0, len(plaintext), name), (key, tag), ciphertext), plaintext)


def check_salt(case):
    info = salt_info(case["root"], case["epoch"], case["class"], case["scope"], case["scope_name"])
    check("info", info.hex(), case["info"])
    check("salt", hkdf(b"", bytes.fromhex(case["secret"]), info).hex(), case["salt"])


def check_manifest(case):
    encoded = bytes.fromhex(case["manifest"])
    manifest = Manifest(encoded)
    check("manifest_id", manifest.id.hex(), case["manifest_id"])
    check("suite", manifest.suite, SUITES[case["suite"]])
    check("geometry", (manifest.image_size, manifest.chunk_size), (case["image_size"], case["chunk_size"]))
    check("tenant", manifest.tenant, case["tenant"])
    check("key_id", manifest.key_id, case["key_id"])
    check("wrapped_key", manifest.wrapped.hex(), case["wrapped_key"])
    check("nonce", manifest.sealed[:NONCE].hex(), case["nonce"])
    tenant_key = parse_key_file(case["key_file"], "of the vector")
    data_key = unwrap(manifest.tenant, tenant_key, manifest.key_id, manifest.wrapped)
    check("data_key", data_key.hex(), case["data_key"])
    secrets, metadata = manifest.open(data_key)
    check("metadata", metadata.decode(), case["metadata"])
    check("chunks", len(manifest.records), len(case["chunks"]))
    for record, secret, chunk in zip(manifest.records, secrets, case["chunks"]):
        check("slot", record[0], chunk["slot"])
        check("stored_length", record[1], chunk["stored_length"])
        check("id", record[2].hex(), chunk["id"])
        check("key and tag", (secret[0].hex(), secret[1].hex()), (chunk["key"], chunk["tag"]))
        plaintext = trim(expand(chunk["plaintext"]))
        sealed = seal_chunk(manifest.suite, bytes.fromhex(case["salt"]), plaintext)
        check("plaintext", open_chunk(manifest.suite, record, secret, sealed[3]), plaintext)
    for damage in case["damage"]:
        check_damage(encoded, tenant_key, damage)


def check_damage(encoded, tenant_key, damage):
    at, change = damage["at"], bytes.fromhex(damage["bytes"])
    damaged = encoded[:at] + change + encoded[at + len(change):]
    damaged = damaged[:len(damaged) - damage["cut"]]
    try:
        manifest = Manifest(damaged)
        manifest.open(unwrap(manifest.tenant, tenant_key, manifest.key_id, manifest.wrapped))
    except Refused as refused:
        check(f"damage {damage['name']!r} is refused as", refused.kind, damage["error"])
    else:
        raise Refused("invalid", f"damage {damage['name']!r} is not noticed")


def check_vectors(folder):
    for file, judge in (("suites", check_suite), ("salts", check_salt), ("manifests", check_manifest)):
        with open(os.path.join(folder, file + ".json"), encoding="utf-8") as opened:
            cases = json.load(opened)["cases"]
        for case in cases:
            try:
                judge(case)
            except Refused as refused:
                raise Refused("invalid", f"{file}.json, {case['name']!r}: {refused}") from None
        print(f"{file}.json: {len(cases)} cases agree")


def main():
    parser = argparse.ArgumentParser(description="Reads a snowmelt image by docs/format.md alone.")
    parser.add_argument("--vectors", metavar="DIR", help="check the test vectors in DIR")
    parser.add_argument("--store", metavar="DIR")
    parser.add_argument("--keys", metavar="DIR")
    parser.add_argument("--tenant", default="default", metavar="NAME")
    parser.add_argument("image", nargs="?", metavar="NAME[:TAG]")
    parser.add_argument("output", nargs="?", metavar="OUTPUT")
    arguments = parser.parse_args()
    if not arguments.vectors and not (arguments.store and arguments.keys and arguments.image and arguments.output):
        parser.error("needs --vectors, or --store, --keys, an image and an output file")
    try:
        if arguments.vectors:
            check_vectors(arguments.vectors)
        else:
            read_image(arguments.store, arguments.keys, arguments.tenant, arguments.image, arguments.output)
    except (Refused, OSError, ValueError, KeyError) as error:
        print(f"read_image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
