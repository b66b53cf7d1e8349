#!/usr/bin/env python3
"""Writes the layers of the test image `small`: a BusyBox system in three layers, with the kinds of entry that
flattening must get right (whiteouts, opaque directories, replaced types, hard links across layers, extended
attributes, ACLs, capabilities, setuid, devices, FIFOs, long and odd names, times outside 1970..2038).

usage: small-layers.py BUSYBOX OUTPUT_DIRECTORY     writes layer-1.tar, layer-2.tar, layer-3.tar
"""

import io
import os
import struct
import subprocess
import sys
import tarfile

EPOCH = 1_700_000_000


class Layer:
    """One layer being written; parents are not made up, so that missing ones can be tested."""

    def __init__(self, path):
        self.tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")

    def add(self, name, kind=tarfile.REGTYPE, content=b"", mode=0o644, uid=0, gid=0, mtime=EPOCH, target="",
            device=(0, 0), xattrs=None):
        entry = tarfile.TarInfo(name)
        entry.type = kind
        entry.mode = mode
        entry.uid = uid
        entry.gid = gid
        entry.mtime = mtime
        entry.linkname = target
        entry.devmajor, entry.devminor = device
        for key, value in (xattrs or {}).items():
            entry.pax_headers["SCHILY.xattr." + key] = value.decode("utf-8", "surrogateescape")
        entry.size = len(content)
        self.tar.addfile(entry, io.BytesIO(content))

    def directory(self, name, mode=0o755, **rest):
        self.add(name, tarfile.DIRTYPE, mode=mode, **rest)

    def symlink(self, name, target, **rest):
        self.add(name, tarfile.SYMTYPE, target=target, mode=0o777, **rest)

    def hard_link(self, name, target, **rest):
        self.add(name, tarfile.LNKTYPE, target=target, **rest)

    def close(self):
        self.tar.close()


def acl(*entries):
    """A POSIX ACL as the kernel stores it in system.posix_acl_access: version 2, then (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xFFFFFFFF
# user::rw- user:1000:r-- group::r-- mask::r-- other::r--
ACCESS_ACL = acl((1, 6, NO_ID), (2, 4, 1000), (4, 4, NO_ID), (16, 4, NO_ID), (32, 4, NO_ID))
# security.capability, revision 2, effective: cap_net_raw (bit 13)
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def base(busybox, path):
    layer = Layer(path)
    for name, mode in [("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("proc", 0o555),
                       ("root", 0o700), ("sbin", 0o755), ("srv", 0o755), ("sys", 0o555), ("tmp", 0o1777),
                       ("usr", 0o755), ("usr/bin", 0o755), ("usr/sbin", 0o755), ("var", 0o755), ("var/data", 0o755)]:
        layer.directory(name, mode)
    layer.directory("home/ada", 0o750, uid=1000, gid=1000)
    with open(busybox, "rb") as source:
        layer.add("bin/busybox", content=source.read(), mode=0o755)
    applets = subprocess.run([busybox, "--list-full"], check=True, capture_output=True, text=True).stdout.split()
    for applet in sorted(set(applets)):
        if applet != "bin/busybox" and applet.rsplit("/", 1)[0] in ("bin", "sbin", "usr/bin", "usr/sbin"):
            layer.symlink(applet, "/bin/busybox")
    layer.add("etc/passwd", content=b"root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000:Ada:/home/ada:/bin/sh\n"
                                    b"nobody:x:65534:65534:nobody:/:/bin/false\n")
    layer.add("etc/group", content=b"root:x:0:\nada:x:1000:\nstaff:x:50:ada\nnogroup:x:65534:\n")
    layer.add("srv/lower", content=b"from the lower layer\n")
    layer.add("srv/removed", content=b"must not be seen\n")
    layer.directory("srv/opaque")
    layer.add("srv/opaque/hidden", content=b"must not be seen\n")
    layer.directory("srv/was-directory")
    layer.add("srv/was-directory/inside", content=b"must not be seen\n")
    layer.add("srv/was-file", content=b"a file first\n")
    layer.add("srv/link-source", content=b"linked across layers\n" * 1000)
    layer.close()


def odd(path):
    layer = Layer(path)
    layer.add("srv/.wh.removed")
    layer.directory("srv/opaque")
    layer.add("srv/opaque/.wh..wh..opq")
    layer.add("srv/opaque/new", content=b"above the opaque mark\n")
    layer.add("srv/was-directory", content=b"now a file\n")
    layer.directory("srv/was-file")
    layer.add("srv/was-file/inside", content=b"now a directory\n")
    layer.directory("odd")
    layer.hard_link("odd/link-1", "srv/link-source")
    layer.hard_link("odd/link-2", "srv/link-source")
    layer.add("odd/empty")
    layer.add("odd/setuid", content=b"#!/bin/sh\n", mode=0o4755)
    layer.add("odd/setgid-sticky", content=b"x", mode=0o3711, uid=70_000, gid=4_000_000_000)
    layer.add("odd/capable", content=b"#!/bin/sh\n", mode=0o755, xattrs={"security.capability": NET_RAW})
    layer.add("odd/attributes", content=b"x", xattrs={"user.first": b"1", "user.second": b"two\x00bytes"})
    layer.add("odd/acl", content=b"x", mode=0o644, xattrs={"system.posix_acl_access": ACCESS_ACL})
    layer.add("odd/null", tarfile.CHRTYPE, device=(1, 3), mode=0o666)
    layer.add("odd/disk", tarfile.BLKTYPE, device=(259, 70_000), mode=0o660, gid=6)
    layer.add("odd/fifo", tarfile.FIFOTYPE, mode=0o600)
    layer.symlink("odd/short-link", "empty")
    layer.symlink("odd/long-link", "/" + "x" * 100 + "/" + "y" * 100)
    layer.symlink("odd/dangling", "/nowhere/at/all")
    layer.add("odd/" + "n" * 255, content=b"a name of 255 bytes\n")
    deep = "odd/" + "/".join(["deep" * 20] * 5)
    layer.add(deep + "/file", content=b"parents that no entry names, a path of over 400 bytes\n")
    layer.add("odd/tabs\tand\nnewlines", content=b"x")
    layer.add("odd/gr\u00fc\u00df-\u96ea", content=b"x")
    layer.add("odd/not-utf8-\udcff\udcfe", content=b"x")
    layer.add("odd/before-1970", content=b"x", mtime=-1_000_000_000)
    layer.add("odd/after-2038", content=b"x", mtime=6_000_000_000)
    layer.add("odd/nanoseconds", content=b"x", mtime=EPOCH + 0.5)
    layer.directory("odd/many")
    for number in range(3000):
        layer.add(f"odd/many/entry-{number:05}", content=b"" if number % 3 else str(number).encode())
    layer.add("odd/zeros", content=bytes(3 << 20))
    layer.add("odd/repeated", content=b"first\n")
    layer.add("odd/repeated", content=b"second\n")
    layer.close()


def top(path):
    layer = Layer(path)
    layer.add("srv/lower", content=b"replaced by the top layer\n", mode=0o600, uid=1000)
    pattern = b"".join(struct.pack("<Q", number * 0x9E3779B97F4A7C15 & (1 << 64) - 1) for number in range(1 << 17))
    layer.directory("data")
    layer.add("data/pattern", content=pattern * 4)
    layer.add("etc/greeting", content=b"hello from snowmelt\n")
    layer.close()


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    busybox, output = sys.argv[1:]
    base(busybox, os.path.join(output, "layer-1.tar"))
    odd(os.path.join(output, "layer-2.tar"))
    top(os.path.join(output, "layer-3.tar"))


main()
