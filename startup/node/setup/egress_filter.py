"""A BPF program on a cgroup that refuses packets to a few addresses.

As systemd's `IPAddressDeny=`, but one program for a cgroup and all below it, where systemd loads
two for each. Instructions and calls are the kernel's interface (`linux/bpf.h`), which the standard
library lacks.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import ipaddress
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# The number of bpf(2) on Compute Engine's architectures.
_SYSCALL: Final = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_ATTACH, _FD_BY_ID, _INFO_BY_FD, _PROG_QUERY = 5, 8, 13, 15, 16
_CGROUP_SKB, _EGRESS, _ALLOW_MULTI = 8, 1, 2
# Most programs on a cgroup.
_PROGRAMS: Final = 64
# struct bpf_prog_info: its length up to the name's end, where the name begins, its length.
_INFO, _NAME_AT, _NAME_BYTES = 80, 64, 16
# Per IP version: the protocol in a packet's buffer, and where its destination begins.
_PROTOCOL: Final = {4: 0x0800, 6: 0x86DD}
_DESTINATION: Final = {4: 16, 6: 24}
_AT_PROTOCOL: Final = 16  # of struct __sk_buff
_LOAD_BYTES: Final = 26  # bpf_skb_load_bytes(skb, offset, to, bytes)
_SCRATCH: Final = -16  # of the stack, as long as the longest address


def refusing(addresses: Sequence[str]) -> bytes:
    """The instructions that refuse packets to `addresses` and let all others pass."""
    code = [_op(0xBF, 6, 1), _op(0x61, 7, 6, _AT_PROTOCOL)]  # r6 = the packet, r7 = its protocol
    for text in addresses:
        address = ipaddress.ip_address(text)
        words = struct.unpack(f"={len(address.packed) // 4}i", address.packed)
        load = [
            _op(0xBF, 1, 6),
            _op(0xB7, 2, imm=_DESTINATION[address.version]),
            _op(0xBF, 3, 10),
            _op(0x07, 3, imm=_SCRATCH),
            _op(0xB7, 4, imm=len(address.packed)),
            _op(0x85, imm=_LOAD_BYTES),
            _op(0x55, off=2 * len(words)),  # it cannot be read: refuse
        ]
        refuse = [_op(0xB7), _op(0x95)]  # return 0
        compare: list[bytes] = []
        for index, word in enumerate(words):
            # To the next address where a word differs. By 32 bits: 64 would keep the sign.
            past = 2 * (len(words) - index - 1) + len(refuse)
            compare += [_op(0x61, 1, 10, _SCRATCH + 4 * index), _op(0x56, 1, off=past, imm=word)]
        block = load + compare + refuse
        protocol = int.from_bytes(struct.pack("!H", _PROTOCOL[address.version]), "little")
        code += [_op(0x55, 7, off=len(block), imm=protocol), *block]
    return b"".join([*code, _op(0xB7, imm=1), _op(0x95)])  # return 1


def is_on(cgroup: Path, code: bytes) -> bool:
    """Whether `code` is on `cgroup`, also where another process put it there. Raises OSError."""
    with _held(_opened(cgroup)) as folder:
        return _name(code) in _names(folder)


def put_on(cgroup: Path, code: bytes) -> None:
    """Put `code` on `cgroup`. It stays until the cgroup is removed. Raises OSError."""
    with _held(_opened(cgroup)) as folder, _held(_load(code)) as program:
        _bpf(_PROG_ATTACH, struct.pack("=IIII", folder, program, _EGRESS, _ALLOW_MULTI))


def _opened(cgroup: Path) -> int:
    return os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@contextmanager
def _held(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _op(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, off, imm)


def _name(code: bytes) -> bytes:
    """A name for `code`. The kernel's own tag is a different hash in different versions."""
    return b"pilot_" + hashlib.sha256(code).hexdigest()[:9].encode("ascii")


def _load(code: bytes) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    # No function that it calls requires the GPL.
    licence = ctypes.create_string_buffer(b"unlicensed")
    begin = struct.pack(
        "=IIQQ",
        _CGROUP_SKB,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
    )
    log_and_flags = bytes(24)
    end = struct.pack("=16sII", _name(code), 0, _EGRESS)
    program, _ = _bpf(_PROG_LOAD, begin + log_and_flags + end)
    return program


def _names(folder: int) -> set[bytes]:
    ids = (ctypes.c_uint32 * _PROGRAMS)()
    head = struct.pack("=IIII", folder, _EGRESS, 0, 0)
    tail = struct.pack("=QII", ctypes.addressof(ids), _PROGRAMS, 0)
    _, answer = _bpf(_PROG_QUERY, head + tail)
    (count,) = struct.unpack_from("=I", answer, 24)
    found = set()
    for each in ids[:count]:
        try:
            program, _ = _bpf(_FD_BY_ID, struct.pack("=III", each, 0, 0))
        except FileNotFoundError:
            # Removed meanwhile.
            continue
        with _held(program):
            info = ctypes.create_string_buffer(_INFO)
            _bpf(_INFO_BY_FD, struct.pack("=IIQ", program, _INFO, ctypes.addressof(info)))
            found.add(info.raw[_NAME_AT : _NAME_AT + _NAME_BYTES].rstrip(b"\0"))
    return found


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """The result of the call, and the attributes as the kernel left them. Raises OSError."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf() of {platform.machine()} is not known here")
    libc = ctypes.CDLL(None, use_errno=True)
    given = ctypes.create_string_buffer(attributes, len(attributes))
    result = libc.syscall(
        ctypes.c_long(number),
        ctypes.c_long(command),
        ctypes.c_void_p(ctypes.addressof(given)),
        ctypes.c_long(len(attributes)),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf(): {os.strerror(code)}")
    return result, given.raw
