#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""against-llama.cpp --bin DIR --model FILE [--build DIR] [--cap MIB ...] [--rounds N] [--record]

Ratios of thaw to llama.cpp on one machine: decode of 1 and 8 sequences and prefill with all weights hot, and decode of 1 and
8 sequences in a memory cgroup (v1, needs root) of each --cap. Runs are interleaved, the ratio is of the medians of the rounds.

DIR holds llama-bench, llama-batched-bench and llama-completion, built elsewhere. llama.cpp runs with its defaults when all is
hot, and with `--load-mode mmap --no-repack` under a cap. Huge pages (hugetlb) that thaw uses are taken off its cap, because
the memory cgroup does not count them. --record puts the ratios into docs/BENCHMARKS.md, in the place of those of the same model."""
import argparse
import contextlib
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20


class Cgroup:
    """A memory cgroup with a limit; None is no limit."""

    def __init__(self, limit_bytes):
        self.path = None
        if limit_bytes is not None:
            self.path = f"/sys/fs/cgroup/memory/thaw-bench.{os.getpid()}.{time.monotonic_ns()}"
            os.mkdir(self.path)
            with open(self.path + "/memory.limit_in_bytes", "w") as f:
                f.write(str(limit_bytes))

    def command(self, words):
        if self.path is None:
            return words
        return ["/bin/sh", "-c", f'echo $$ > {self.path}/cgroup.procs; exec "$@"', "sh"] + words

    def close(self):
        if self.path:
            for _ in range(50):
                with contextlib.suppress(OSError):
                    os.rmdir(self.path)
                    return
                time.sleep(0.1)


def drop_from_page_cache(path):
    """Pages that someone else read are charged to him: a run under a cap would find them for nothing."""
    with open(path, "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def llama(a, words, cap, seconds=900):
    if cap is not None:
        drop_from_page_cache(a.model)
    group = Cgroup(cap)
    try:
        r = subprocess.run(group.command(words), capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    finally:
        group.close()
    if r.returncode:
        sys.exit(f"{' '.join(words)}: exit {r.returncode}\n{r.stderr[-1500:]}")
    return r


def llama_bench(a, prompt, generate):
    out = llama(a, [a.bin + "/llama-bench", "-m", a.model, "-t", str(a.threads), "-r", "1", "-p", str(prompt), "-n", str(generate), "-o", "json"], None)
    return float(json.loads(out.stdout)[0]["avg_ts"])


def llama_batched(a, cap, generate):
    words = [a.bin + "/llama-batched-bench", "-m", a.model, "-t", str(a.threads), "-c", "2048", "-npp", "16", "-ntg", str(generate), "-npl", "8",
             "--output-format", "jsonl"]
    if cap is not None:
        words += ["--load-mode", "mmap", "--no-repack"]
    out = llama(a, words, cap)
    line = next(l for l in out.stdout.splitlines() if l.startswith("{"))
    return float(json.loads(line)["speed_tg"])


def llama_capped(a, cap, generate):
    out = llama(a, [a.bin + "/llama-completion", "-m", a.model, "-t", str(a.threads), "-c", "256", "-n", str(generate), "-p", "one two three", "-no-cnv",
                 "--ignore-eos", "--no-warmup", "--load-mode", "mmap", "--no-repack"], cap)
    found = re.search(r"eval time = .*?/\s*\d+ runs.*?([\d.]+) tokens per second", out.stderr)
    if not found:
        sys.exit("llama-completion printed no eval time:\n" + out.stderr[-1500:])
    return float(found.group(1))


class ModelFailed(Exception):
    pass


class Thaw:
    """A daemon with the model loaded, in a cgroup or not. memory: MiB of each budget; what is not there thawd chooses."""

    def __init__(self, a, cap, context, batch, memory):
        self.a, self.dir = a, tempfile.mkdtemp(prefix="thaw-bench.")
        self.address = f"unix:{self.dir}/thaw.sock"
        with open(self.dir + "/thaw.yaml", "w") as f:
            f.write(f"listen:\n  grpc: {self.address}\n  metrics: ''\nstore:\n  path: {a.data}/store\n")
            f.write(f"compute:\n  threads: {a.threads}\nscheduler:\n  context_tokens: {context}\n  batch_tokens: {batch}\n  max_sequences: 8\n")
            if memory:
                f.write("memory:\n" + "".join(f"  {k}: {v}MiB\n" for k, v in memory.items()))
            f.write(f"models:\n  - name: bench\n    path: {a.model}\n")
        self.group = Cgroup(cap)
        self.log = open(self.dir + "/thawd.log", "w")
        self.daemon = subprocess.Popen(self.group.command([a.build + "/daemon/thawd", "--config", self.dir + "/thaw.yaml"]), stderr=self.log)
        for _ in range(2400):
            if self.daemon.poll() is not None:
                sys.exit(f"thawd ended with {self.daemon.returncode}:\n" + open(self.dir + "/thawd.log").read()[-2000:])
            r = subprocess.run([a.build + "/daemon/ctl/thawctl", "--server", self.address, "status"], capture_output=True)
            if r.returncode == 0:
                break
            if "event=model_failed" in open(self.dir + "/thawd.log").read():
                self.daemon.kill()
                self.daemon.wait()
                raise ModelFailed("the model failed:\n" + open(self.dir + "/thawd.log").read()[-2000:])
            time.sleep(0.25)
        else:
            sys.exit("thawd was not ready in 10 minutes")
        if self.group.path:
            self.take_hugetlb_off(cap)

    def take_hugetlb_off(self, cap):
        huge = 0
        for pid in open(self.group.path + "/cgroup.procs").read().split():
            with contextlib.suppress(OSError):
                for line in open(f"/proc/{pid}/status"):
                    if line.startswith("HugetlbPages:"):
                        huge += int(line.split()[1]) * 1024
        if huge:
            with open(self.group.path + "/memory.limit_in_bytes", "w") as f:
                f.write(str(cap - huge))

    def bench(self, streams, prompt, generate):
        r = subprocess.run([self.a.build + "/daemon/ctl/thawctl", "--server", self.address, "bench", "--streams", str(streams), "--prompt-tokens", str(prompt),
                            "-n", str(generate), "-o", "json"], capture_output=True, text=True)
        if r.returncode:
            sys.exit("thawctl bench: " + r.stderr + open(self.dir + "/thawd.log").read()[-2000:])
        return json.loads(r.stdout)

    def placement(self):
        r = subprocess.run([self.a.build + "/daemon/ctl/thawctl", "--server", self.address, "placement", "-o", "json"], capture_output=True, check=True)
        return json.loads(r.stdout)["placements"][0]

    def decode(self, streams, generate):
        return streams / self.bench(streams, 16, generate)["itl_mean_seconds"]

    def prefill(self, prompt):
        return prompt / self.bench(1, prompt, 1)["ttft_p50_seconds"]

    def close(self):
        self.daemon.send_signal(signal.SIGTERM)
        try:
            self.daemon.wait(60)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
        self.group.close()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def pack(a):
    thaw = Thaw(a, None, 256, 128, {"weights": 256, "kv": 64})
    block = int(thaw.placement()["input"]["kv_block_bytes"])
    thaw.close()
    return block


def least_workspace_mib(a):
    """What 8 sequences and one pass of all their prompts need, the processes included, as the refusal of less says."""
    try:
        Thaw(a, None, 256, 128, {"weights": 256, "kv": 64, "workspace": 1})
    except ModelFailed as e:
        found = re.search(r"memory.workspace is .* and needs at least ([\d.]+) MiB", str(e))
        if found:
            return math.ceil(float(found.group(1)) + 0.05)  # the text rounds
        sys.exit(str(e))
    return 1


def capped_thaw(a, cap):
    """The whole cap is budgeted: the least workspace, KV for 8 sequences of 3 blocks (a run has 24 positions), the rest for weights."""
    workspace, kv = least_workspace_mib(a), -(-24 * a.kv_block_bytes // MIB)
    return Thaw(a, cap * MIB, 256, 128, {"weights": cap - kv - workspace, "kv": kv, "workspace": workspace})


def compare(a, name, ours, theirs):
    """Interleaved rounds of both sides."""
    x, y = [], []
    for i in range(a.rounds):
        y.append(theirs())
        x.append(ours())
        print(f"{name} round {i}: thaw {x[-1]:.2f}, llama.cpp {y[-1]:.2f} tokens/s", file=sys.stderr)
    x, y = statistics.median(x), statistics.median(y)
    line = f"{name} ratio={x / y:.2f} thaw={x:.2f} llama.cpp={y:.2f}"
    print(line, file=sys.stderr)
    return line


def record(a, lines):
    """A section of docs/BENCHMARKS.md for the model; `tests/bench/run all` keeps these sections."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "BENCHMARKS.md")
    head = f"## Against llama.cpp: {os.path.basename(a.model)}\n"
    with open(path) as f:
        sections = re.split(r"(?m)^(?=## Against llama\.cpp)", f.read().rstrip("\n") + "\n")
    cpu = next(l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=os.path.dirname(path)).stdout.strip()
    text = (f"{head}\nWritten by `tests/bench/against-llama.cpp --record`: tokens/s and their ratio, medians of {a.rounds} "
            f"round{'s' if a.rounds > 1 else ''}, {a.threads} threads.\n\n"
            f"- date: {time.strftime('%Y-%m-%d', time.gmtime())}, commit {commit}\n- machine: {cpu}\n\n```\n" + "\n".join(lines) + "\n```\n")
    kept = [s.rstrip("\n") + "\n" for s in sections if not s.startswith(head)]
    with open(path, "w") as f:
        f.write("\n".join(kept + [text]))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", required=True, help="folder of llama.cpp's programs")
    p.add_argument("--model", required=True, help="GGUF file")
    p.add_argument("--build", default="build-bench", help="our build folder")
    p.add_argument("--data", default=os.environ.get("THAW_BENCH_DATA", "/var/tmp/thaw-bench"), help="where the store goes")
    p.add_argument("--cap", type=int, action="append", default=[], metavar="MIB", help="also under this cap; can be repeated")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--tokens", type=int, default=32, help="decoded in each round")
    p.add_argument("--only", choices=["hot", "capped"])
    p.add_argument("--record", action="store_true", help="into docs/BENCHMARKS.md")
    a = p.parse_args()
    a.model, a.build, a.bin = (os.path.abspath(x) for x in (a.model, a.build, a.bin))
    os.makedirs(a.data, exist_ok=True)
    lines = []
    a.kv_block_bytes = pack(a)
    if a.only != "capped":
        thaw = Thaw(a, None, 1024, 512, {})
        try:
            lines.append(compare(a, "hot-decode-1", lambda: thaw.decode(1, a.tokens), lambda: llama_bench(a, 0, a.tokens)))
            lines.append(compare(a, "hot-decode-8", lambda: thaw.decode(8, a.tokens), lambda: llama_batched(a, None, a.tokens)))
            lines.append(compare(a, "hot-prefill", lambda: thaw.prefill(512), lambda: llama_bench(a, 512, 0)))
        finally:
            thaw.close()
    for cap in a.cap if a.only != "hot" else []:
        thaw = capped_thaw(a, cap)
        try:
            lines.append(compare(a, f"cap-{cap}-decode-1", lambda: thaw.decode(1, 8), lambda: llama_capped(a, cap * MIB, 8)))
            lines.append(compare(a, f"cap-{cap}-decode-8", lambda: thaw.decode(8, 8), lambda: llama_batched(a, cap * MIB, 8)))
        finally:
            thaw.close()
    print("\n".join(lines))
    if a.record:
        record(a, lines)


main()
