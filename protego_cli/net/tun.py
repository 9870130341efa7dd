"""A TUN device: made in a network namespace, gone when it is closed, IP packets read and written.

1. A thread of its own enters the namespace, opens /dev/net/tun there and makes the device (TUNSETIFF): a
   device belongs to the namespace of whoever opened the file. The thread ends with that; nobody else moved.
2. iproute2 gives it its MTU and addresses and sets it up.
3. One system call moves one packet. The kernel has computed all checksums and cut all segments when we read
   (it does either faster than we could), and trusts none when we write.

`INNER_MTU` is the largest packet that reaches every peer whole.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import trio

from protego_cli.errors import EnvironmentFault

# linux/if_tun.h, linux/sched.h
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI, IFF_TUN_EXCL = 0x0001, 0x1000, 0x8000
CLONE_NEWNET = 0x40000000

CLONE_DEVICE = Path("/dev/net/tun")
NAMESPACES = Path("/run/netns")  # where `ip netns add` puts them
QUEUE = 5000  # packets that wait for us in the kernel
READ_BYTES = 1 << 16
IP_TIMEOUT = 10.0

ETHERNET_MTU = 1500
_IPV4, _UDP, _VXLAN, _ETHERNET = 20, 8, 8, 14
_ESP, _IV, _BLOCK, _TRAILER, _ICV = 8, 16, 16, 2, 32  # of the largest suite: AES-CBC with HMAC-SHA-512


def inner_mtu(path: int = ETHERNET_MTU) -> int:
    """The largest inner packet that no hop of `path` bytes has to see in fragments: neither in VXLAN between
    GEN and GPN, nor in ESP over UDP to the peer (RFC 3948), whatever suite was negotiated. It is in one or in
    the other, never in both.
    """
    sealed = path - _IPV4 - _UDP - _ESP - _IV - _ICV
    return min(path - _IPV4 - _UDP - _VXLAN - _ETHERNET, sealed // _BLOCK * _BLOCK - _TRAILER)


INNER_MTU = inner_mtu()


class DeviceGone(Exception):
    """The device was deleted, perhaps with its namespace."""


class TunDevice:
    """An open device."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(
        cls, name: str, netns: str | None, *, mtu: int, addresses: Iterable[str], where: str
    ) -> TunDevice:
        """Make the device and set it up. `where` is the key of the cluster file that asks for it.

        Raises EnvironmentFault with the remedy.
        """
        with ThreadPoolExecutor(1) as thread:
            device = cls(thread.submit(_make, name, netns, where).result())
        quiet = " addrgenmode none" if Path("/proc/sys/net/ipv6").exists() else ""  # nobody to hear of us
        commands = [f"link set dev {name} mtu {mtu} txqueuelen {QUEUE}{quiet}"]
        commands += [f"address add {address} dev {name}" for address in addresses]
        commands.append(f"link set dev {name} up")
        try:
            configure(netns, commands, where)
        except EnvironmentFault:
            device.close()
            raise
        return device

    def read(self, most: int) -> list[bytes]:
        """The packets that wait, at most so many. Raises DeviceGone."""
        packets: list[bytes] = []
        fd = self._fd
        try:
            while len(packets) < most:
                packets.append(os.read(fd, READ_BYTES))
        except BlockingIOError:
            pass
        except OSError as error:
            if not packets:
                raise DeviceGone(error.strerror) from error
        return packets

    def write(self, packets: Sequence[bytes | bytearray | memoryview]) -> int:
        """How many packets the kernel took."""
        taken, fd = 0, self._fd
        for packet in packets:
            try:
                os.write(fd, packet)
            except OSError:  # the device is down or gone, or the kernel has no memory
                continue
            taken += 1
        return taken

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._fd)

    def close(self) -> None:
        """The device goes, and with it its addresses and routes."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def ip_command(netns: str | None) -> list[str]:
    """iproute2, reading commands from its standard input; it goes on after one that fails."""
    return ["ip", *(("-n", netns) if netns else ()), "-force", "-batch", "-"]


def configure(netns: str | None, commands: Sequence[str], where: str) -> None:
    """Run commands of iproute2, all of which must succeed. Raises EnvironmentFault."""
    try:
        done = subprocess.run(  # noqa: S603 - names and addresses are those the cluster file may have
            ip_command(netns),
            input="\n".join(commands) + "\n",
            capture_output=True,
            text=True,
            timeout=IP_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        raise EnvironmentFault(f"{where}: needs `ip`; install the package iproute2") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"{where}: `ip` did not answer within {IP_TIMEOUT:g} s") from None
    if done.returncode:
        refused = " ".join(done.stderr.split())
        raise EnvironmentFault(f"{where}: `ip` refused one of {'; '.join(commands)}: {refused}")


def _make(name: str, netns: str | None, where: str) -> int:
    """The file of a new device of the namespace; the calling thread is in that namespace then."""
    if netns is not None:
        _enter(netns, where)
    try:
        fd = os.open(CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise EnvironmentFault(f"{where}: {_open_fault(error)}") from error
    try:
        flags = IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(fd)
        raise EnvironmentFault(f"{where}: {_make_fault(name, netns, error)}") from error
    return fd


def _enter(netns: str, where: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        with (NAMESPACES / netns).open("rb") as file:
            refused = ctypes.get_errno() if libc.setns(file.fileno(), CLONE_NEWNET) else 0
    except FileNotFoundError:
        raise EnvironmentFault(
            f"{where}: there is no network namespace {netns!r} on this machine: make it "
            f"(`ip netns add {netns}`), or correct the cluster file"
        ) from None
    except OSError as error:
        refused = error.errno or errno.EIO
    if refused:
        raise EnvironmentFault(
            f"{where}: the network namespace {netns!r} cannot be entered ({os.strerror(refused)}): "
            "run as root or with CAP_SYS_ADMIN"
        )


def _open_fault(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"{CLONE_DEVICE} is not there: `modprobe tun`; in systemd's unit, PrivateDevices=no"
    return f"{CLONE_DEVICE} cannot be opened ({error.strerror}): run as root or give the node access to it"


def _make_fault(name: str, netns: str | None, error: OSError) -> str:
    place = f"in the network namespace {netns!r}" if netns else "on this machine"
    if error.errno in (errno.EBUSY, errno.EINVAL):
        remove = f"ip {f'-n {netns} ' if netns else ''}link del {name}"
        return (
            f"a device {name!r} exists already {place}: stop what made it, remove it (`{remove}`), or give "
            "this one another name"
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"the device {name!r} cannot be made {place}: run as root or with CAP_NET_ADMIN"
    return f"the device {name!r} cannot be made {place}: {error.strerror}"
