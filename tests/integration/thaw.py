# SPDX-License-Identifier: Apache-2.0
"""A thawd of one's own for a test, in a folder of its own, and thawctl against it."""
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

BUILD = os.environ["THAW_BUILD"]
THAWD = os.path.join(BUILD, "daemon", "thawd")
THAWCTL = os.path.join(BUILD, "daemon", "ctl", "thawctl")
MAKE_MODEL = os.path.join(BUILD, "tests", "bench", "bench_model")


def flip_bits(path):
    """One bit in each 64 KiB of a layer file's data."""
    with open(path, "r+b") as f:
        for at in range(4096 + 1234, os.path.getsize(path) - 65536, 65536):
            f.seek(at)
            byte = f.read(1)
            f.seek(at)
            f.write(bytes([byte[0] ^ 0x40]))


PATIENCE = 120  # longer than anything that ends takes on a machine that does ten other things


def wait_for(what, condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


class Daemon:
    """thawd with its socket, store, log and notify socket in one temporary folder."""

    def __init__(self, sets=(), folder=None, prefix=()):
        self.prefix = list(prefix)  # a command that runs thawd
        self.program = THAWD
        self.folder = folder or tempfile.mkdtemp(prefix="thaw-it-")
        self.sets = list(sets)
        self.process = None
        self.told = []
        os.makedirs(self.path("conf.d"), exist_ok=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def address(self):
        return "unix:" + self.path("thaw.sock")

    def make_model(self, name="tiny", layers=8, width=256):
        path = self.path(name + ".gguf")
        if not os.path.exists(path):
            subprocess.run([MAKE_MODEL, path, "Q8_0", str(layers), str(width), str(2 * width), "4", "2"], check=True)
        return path

    def command(self, *more):
        c = self.prefix + [self.program, "--config", "/dev/null", "--conf-dir", self.path("conf.d"), "--log-level", "debug"]
        base = [f"listen.grpc={self.address()}", "listen.metrics=", f"store.path={self.path('store')}",
                "compute.backend=reference", "scheduler.context_tokens=512", "daemon.drain=60s"]
        for s in base + self.sets + list(more):
            c += ["--set", s]
        return c

    def start(self, *more, env=None):
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = self.path("notify.sock")
        if os.path.exists(name):
            os.unlink(name)
        notify.bind(name)
        os.chmod(name, 0o666)  # thawd may run as another user
        told = self.told = []  # what the process before still says is not this one's
        threading.Thread(target=self._listen, args=(notify, told), daemon=True).start()
        e = dict(os.environ, NOTIFY_SOCKET=name, **(env or {}))
        with open(self.path("log"), "ab") as log:
            self.process = subprocess.Popen(self.command(*more), stdout=log, stderr=log, env=e)
        wait_for("READY=1", lambda: "READY=1" in told or self.process.poll() is not None)
        return self

    def _listen(self, notify, told):
        while True:
            told += notify.recv(4096).decode().splitlines()

    def notes(self):
        return list(self.told)

    def status(self):
        """The last STATUS= that the service manager was told."""
        return ([n[7:] for n in self.notes() if n.startswith("STATUS=")] or [""])[-1]

    def ctl(self, *args, check=True, json_output=True, timeout=PATIENCE):
        c = [THAWCTL, *args, "--server", self.address()] + (["-o", "json"] if json_output else [])
        p = subprocess.run(c, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)
        if check and p.returncode:
            raise AssertionError(f"{' '.join(args)}: {p.returncode}: {p.stderr}")
        return p

    def popen(self, *args, text=True):
        c = [THAWCTL, *args, "--server", self.address()]
        return subprocess.Popen(c, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=text)

    def generate(self, prompt, tokens, *more):
        p = self.ctl("generate", prompt, "-n", str(tokens), "--ignore-eos", *more)
        return json.loads(p.stdout)["outputs"][0]["token_ids"]

    def answers(self, prompt, tokens, *more):
        """The tokens, or None."""
        p = self.ctl("generate", prompt, "-n", str(tokens), "--ignore-eos", *more, check=False)
        return None if p.returncode else json.loads(p.stdout)["outputs"][0]["token_ids"]

    def log(self):
        with open(self.path("log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def metric(self, name):
        """Of a daemon with listen.metrics, without labels."""
        address = [s.split("=", 1)[1] for s in self.sets if s.startswith("listen.metrics=")][-1]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as r:
            lines = r.read().decode().splitlines()
        return float([line.split()[1] for line in lines if line.startswith(name + " ")][0])

    def ranks(self):
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
                    head, tail = f.read().rsplit(")", 1)
            except OSError:
                continue
            if head.split("(", 1)[1].startswith("rank-") and int(tail.split()[1]) == self.process.pid:
                found.append(int(pid))
        return found

    def wait_ready(self, seconds=2 * PATIENCE):
        wait_for("a model that is ready", lambda: self.process.poll() is not None or
                 self.ctl("status", check=False).returncode == 0, seconds)
        if self.process.poll() is not None:
            raise AssertionError(f"thawd ended with {self.process.returncode}: {self.log()[-2000:]}")
        return self

    def stop(self, number=signal.SIGTERM, seconds=PATIENCE):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
