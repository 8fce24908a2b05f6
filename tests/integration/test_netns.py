# SPDX-License-Identifier: Apache-2.0
"""tests/lib/netns.py: hosts reach each other, a blackhole is one, and nothing is left behind, also after a kill."""
import os
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import netns  # noqa: E402

TALK = r"""
import socket, sys
s = socket.create_connection((sys.argv[1], 7000), timeout=float(sys.argv[2]))
s.sendall(b"hello")
assert s.recv(5) == b"hello"
"""
ECHO = r"""
import socket
l = socket.create_server(("0.0.0.0", 7000))
print("up", flush=True)
while True:
    c, _ = l.accept()
    c.sendall(c.recv(5))
    c.close()
"""


def left(names):
    have = subprocess.run(["ip", "netns", "list"], stdout=subprocess.PIPE, check=True).stdout.decode().split()
    return [n for n in names if n in have]


class Netns(unittest.TestCase):
    def talk(self, hosts, to, seconds):
        return hosts.run(0, [sys.executable, "-c", TALK, hosts.address(to), str(seconds)], stderr=subprocess.DEVNULL).returncode

    def test_hosts_and_blackhole(self):
        with netns.Hosts(3) as hosts:
            names = hosts.names + [hosts.switch]
            self.assertEqual(left(names), names)
            echo = hosts.popen(2, [sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
            echo.stdout.readline()
            self.assertEqual(self.talk(hosts, 2, 60), 0)
            self.assertNotEqual(self.talk(hosts, 1, 1), 0)
            hosts.blackhole(2)
            start = time.monotonic()
            self.assertNotEqual(self.talk(hosts, 2, 0.5), 0)
            self.assertGreater(time.monotonic() - start, 0.4)  # silence, not a refusal
            hosts.unblackhole(2)
            self.assertEqual(self.talk(hosts, 2, 60), 0)
            devices = hosts.run(1, ["ls", "/sys/class/net"], stdout=subprocess.PIPE).stdout.decode().split()
            self.assertEqual(sorted(devices), ["eth0", "lo"])
        self.assertEqual(left(names), [])
        self.assertEqual(echo.wait(60), -signal.SIGKILL)
        echo.stdout.close()

    def test_nothing_is_left_after_a_kill(self):
        p = subprocess.Popen([sys.executable, netns.__file__, "2", "sh", "-c", "echo $NETNS_NAMES; exec sleep 60"],
                             stdout=subprocess.PIPE, start_new_session=True)
        names = p.stdout.readline().decode().split()
        self.assertEqual(len(left(names)), 2)
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
        p.stdout.close()
        end = time.monotonic() + 60
        while left(names) and time.monotonic() < end:
            time.sleep(0.05)
        self.assertEqual(left(names), [])


if __name__ == "__main__":
    missing = netns.why_not()
    if missing:
        print(f"skipped: no network namespaces here: {missing}")
        sys.exit(77)
    unittest.main()
