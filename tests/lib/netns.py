#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Network namespaces as hosts, for tests and benchmarks: N of them, joined by a bridge that lies in one of its own, so that
the machine's own network is not touched.

    with netns.Hosts(3) as hosts:
        hosts.run(0, ["thawd", ...])        like subprocess.run, on host 0
        hosts.popen(1, [...])               like subprocess.Popen
        hosts.address(2)                    its IPv4 address
        hosts.blackhole(2)                  from here on nothing gets to it or from it, and nobody is told; unblackhole(2)

    tests/lib/netns.py 3 COMMAND...         runs COMMAND with NETNS_NAMES and NETNS_ADDRESSES in its environment

All is taken down at the end: also when this process is killed, by a guard process that notices. What ran inside is killed then.
Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN); why_not() says what is missing, or None.
Each host sees a /sys of its own network; shared memory and unix sockets cross hosts, so UCX needs UCX_TLS=tcp,self here.
"""
import os
import shutil
import signal
import subprocess
import sys

PREFIX = "thawt"
GUARD = r"""
import os, subprocess, signal, sys
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(s, signal.SIG_IGN)
sys.stdin.buffer.read()  # until whoever holds the other end is gone
for name in sys.argv[1:]:
    pids = subprocess.run(["ip", "netns", "pids", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.split()
    for pid in pids:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
    subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
"""


def why_not():
    """What keeps namespaces from being made here, or None."""
    if not shutil.which("ip"):
        return "no `ip` (apt install iproute2)"
    if os.geteuid() != 0:
        return "not root"
    name = f"{PREFIX}{os.getpid()}try"
    r = subprocess.run(["ip", "netns", "add", name], stderr=subprocess.PIPE)
    if r.returncode:
        return "ip netns add: " + r.stderr.decode().strip()
    try:
        r = subprocess.run(["ip", "-n", name, "link", "add", "name", "br0", "type", "bridge"], stderr=subprocess.PIPE)
        return "no bridges: " + r.stderr.decode().strip() if r.returncode else None
    finally:
        subprocess.run(["ip", "netns", "del", name])


class Hosts:
    def __init__(self, count, subnet="10.77.0"):
        if not 1 <= count <= 64:
            raise ValueError(f"{count} hosts: 1 to 64")
        self.count, self.subnet = count, subnet
        stem = f"{PREFIX}{os.getpid()}x{os.urandom(2).hex()}"
        self.switch = stem + "s"
        self.names = [f"{stem}h{i}" for i in range(count)]
        # The guard is there before the first namespace; it alone takes them down. It leaves this process group before its
        # exec, that is before Popen returns: a kill of the group never meets it.
        self._guard = subprocess.Popen([sys.executable, "-c", GUARD] + self.names + [self.switch], stdin=subprocess.PIPE,
                                       start_new_session=True)
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self):
        def ip(*args):
            subprocess.run(["ip", *args], check=True)
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "name", "br0", "type", "bridge", "forward_delay", "0", "stp_state", "0")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for i, name in enumerate(self.names):
            ip("netns", "add", name)
            ip("-n", self.switch, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", self.switch, "link", "set", f"port{i}", "master", "br0", "up")
            ip("-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")

    def address(self, host):
        return f"{self.subnet}.{host + 1}"

    def command(self, host, args):
        return ["ip", "netns", "exec", self.names[host], *args]

    def run(self, host, args, **more):
        return subprocess.run(self.command(host, args), **more)

    def popen(self, host, args, **more):
        return subprocess.Popen(self.command(host, args), **more)

    def _port(self, host, state):
        subprocess.run(["bridge", "-n", self.switch, "link", "set", "dev", f"port{host}", "state", state], check=True)

    def blackhole(self, host):
        self._port(host, "0")  # a disabled port forwards nothing, and its carrier stays

    def unblackhole(self, host):
        self._port(host, "3")

    def close(self):
        if self._guard:
            self._guard.stdin.close()
            self._guard.wait()
            self._guard = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def main():
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        print(__doc__)
        return 2
    why = why_not()
    if why:
        print(f"netns: {why}", file=sys.stderr)
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Hosts(int(sys.argv[1])) as hosts:
        env = dict(os.environ, NETNS_NAMES=" ".join(hosts.names),
                   NETNS_ADDRESSES=" ".join(hosts.address(i) for i in range(hosts.count)))
        return subprocess.run(sys.argv[2:], env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
