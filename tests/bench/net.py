#!/usr/bin/env python3
"""Measures the network's `tap` example against pasta and slirp4netns, in turns within one run.

net.py TAP-EXAMPLE [--rounds N] [--seconds S] [--only WORD] [--programs NAME]

Needs root, iperf3, ip, pasta (Debian's passt) and slirp4netns. Each measurement has two fresh network
namespaces: the world, in which the program runs and the servers listen at 192.0.2.1, and the guest, whose
only device is the program's TAP. 192.0.2.1 is an address of the world's and none of the guest's loopback, so
that pasta takes its way over the TAP device and splices nothing. The programs take turns in each round, and
each figure is the median of the rounds.

Throughput is what iperf3's receiver counts, after a second of warming up. Processor time is that of the
program alone, user and system with all its threads and children (proc(5)), over the same bytes: what the
guest's stack and iperf3 use is not in it, though each program's writes to TAP run the guest's receiving stack
and its sends the world's. Round trips (one byte each way on one connection, TCP_NODELAY) and connections
(connect, one byte each way, close, one after another) are loops of this script's own, as netperf is not in
Debian's main section. kvmbake is measured with the offloads that a virtio driver would take (IFF_VNET_HDR)
and without; the other two have none on TAP.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

WORLD = "192.0.2.1"
GUEST, GATEWAY = "10.0.2.15", "10.0.2.2"
MAC = "52:54:00:12:34:56"
IPERF, ECHO = 5201, 7
IDLE = 1000
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x4000_0000
TICKS = os.sysconf("SC_CLK_TCK")
PACKAGES = {"pasta": "passt", "slirp4netns": "slirp4netns", "iperf3": "iperf3", "ip": "iproute2"}


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def namespace(name):
    """Makes a network namespace for as long as the block runs, and gives its name."""
    name = f"kvmbake-{os.getpid()}-{name}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        # Connections by the thousand need ports by the thousand.
        for setting, value in [("ip_local_port_range", "1024 65535"), ("tcp_tw_reuse", "1")]:
            entered(name, lambda: Path("/proc/sys/net/ipv4", setting).write_text(value))
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def entered(name, work):
    """Runs `work` on a thread in a namespace: what it opens stays there."""
    result = []

    def run():
        with open(f"/run/netns/{name}") as file:
            # os.setns has come with Python 3.12.
            if LIBC.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter {name}")
        result.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if not result:
        sys.exit(f"the work in {name} failed")
    return result[0]


class Network:
    """One of the programs between a guest and a world."""

    def __init__(self, title, command, configures):
        self.title, self.command, self.configures = title, command, configures

    @contextlib.contextmanager
    def running(self, mtu):
        with namespace("world") as world, namespace("guest") as guest:
            ip("-n", world, "addr", "add", f"{WORLD}/32", "dev", "lo")
            # pasta wants an interface with a default route, though nothing goes there.
            ip("-n", world, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
            ip("-n", world, "addr", "add", "198.51.100.2/24", "dev", "up0")
            ip("-n", world, "link", "set", "up0", "up")
            ip("-n", world, "link", "set", "up1", "up")
            ip("-n", world, "route", "add", "default", "via", "198.51.100.1")
            command = ["ip", "netns", "exec", world, *self.command(mtu, f"/run/netns/{guest}")]
            program = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            servers = [
                subprocess.Popen(
                    ["ip", "netns", "exec", world, "iperf3", "-s"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                ),
                subprocess.Popen(
                    ["ip", "netns", "exec", world, sys.executable, __file__, "--echo"]
                ),
            ]
            try:
                self.prepare(guest, mtu, program)
                yield Running(guest, program.pid)
                if program.poll() is not None:
                    sys.exit(f"{self.title} has ended with {program.returncode}")
            finally:
                for process in [*servers, program]:
                    process.kill()
                    process.wait()

    def prepare(self, guest, mtu, program):
        """Waits until the guest has its device, address and servers."""
        deadline = time.monotonic() + 10

        def until(condition):
            while not condition():
                if time.monotonic() > deadline or program.poll() is not None:
                    sys.exit(f"{self.title} does not connect the guest")
                time.sleep(0.02)

        shown = lambda *what: subprocess.run(
            ["ip", "-n", guest, *what], capture_output=True, text=True
        ).stdout
        until(lambda: "tap0" in shown("link"))
        if not self.configures:
            ip("-n", guest, "link", "set", "tap0", "up", "address", MAC, "mtu", str(mtu))
            ip("-n", guest, "addr", "add", f"{GUEST}/24", "dev", "tap0")
            ip("-n", guest, "route", "add", "default", "via", GATEWAY)
        until(lambda: "default" in shown("route"))
        if f"mtu {mtu} " not in shown("link", "show", "tap0"):
            sys.exit(f"{self.title} has not given its device an MTU of {mtu}")

        def answers(port):
            try:
                socket.create_connection((WORLD, port), 1).close()
                return True
            except OSError:
                return False

        for port in (IPERF, ECHO):
            until(lambda: entered(guest, lambda: answers(port)))


class Running:
    def __init__(self, guest, pid):
        self.guest, self.pid = guest, pid

    def cpu(self):
        """Returns the processor seconds that the program has used, its children included."""
        total = 0
        for process in self.family():
            with contextlib.suppress(FileNotFoundError):
                # After the name in brackets the fields begin with the third.
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def family(self):
        family = [self.pid]
        for process in family:
            children = Path(f"/proc/{process}/task/{process}/children")
            with contextlib.suppress(FileNotFoundError):
                family.extend(int(child) for child in children.read_text().split())
        return family

    def iperf(self, seconds, down, streams):
        """Returns Gbit/s and the program's processor seconds for each GB."""
        command = ["ip", "netns", "exec", self.guest, "iperf3", "-c", WORLD, "-J"]
        command += ["-P", str(streams)] + ["-R"] * down
        self.report([*command, "-t", "1"])
        # The server takes leave of its last client first.
        time.sleep(0.3)
        before = self.cpu()
        report = self.report([*command, "-t", str(seconds)])
        used = self.cpu() - before
        received = report["end"]["sum_received"]
        return received["bits_per_second"] / 1e9, used / (received["bytes"] / 1e9)

    def report(self, command):
        """Returns what iperf3 tells, once its server is there for it."""
        for _ in range(20):
            done = subprocess.run(command, capture_output=True, check=False)
            report = json.loads(done.stdout)
            if "busy" not in report.get("error", ""):
                break
            time.sleep(0.5)
        if "error" in report:
            sys.exit(f"iperf3: {report['error']}")
        return report

    def round_trips(self, seconds):
        """Returns microseconds for each exchange of one byte."""

        def work():
            with socket.create_connection((WORLD, ECHO)) as stream:
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                count, begun = 0, time.monotonic()
                while (elapsed := time.monotonic() - begun) < seconds:
                    for _ in range(50):
                        stream.sendall(b"x")
                        stream.recv(1)
                    count += 50
                return 1e6 * elapsed / count

        return entered(self.guest, work)

    def connections(self, seconds):
        """Returns connections a second."""

        def work():
            count, begun = 0, time.monotonic()
            while (elapsed := time.monotonic() - begun) < seconds:
                with socket.create_connection((WORLD, ECHO)) as stream:
                    stream.sendall(b"x")
                    stream.recv(1)
                count += 1
            return count / elapsed

        return entered(self.guest, work)

    @contextlib.contextmanager
    def idle(self, count):
        """Has so many connections open, each used once."""
        streams = entered(
            self.guest,
            lambda: [socket.create_connection((WORLD, ECHO), 10) for _ in range(count)],
        )
        for stream in streams:
            stream.sendall(b"x")
        for stream in streams:
            stream.recv(1)
        try:
            yield
        finally:
            for stream in streams:
                stream.close()


def echo():
    """Serves echoes, all on one thread."""
    import select

    raise_descriptors()
    listener = socket.create_server((WORLD, ECHO), backlog=1024)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    streams = {}
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == listener.fileno():
                stream, _ = listener.accept()
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                streams[stream.fileno()] = stream
                poller.register(stream, select.EPOLLIN)
                continue
            stream = streams[descriptor]
            try:
                data = stream.recv(64)
                stream.sendall(data)
            except ConnectionError:
                data = b""
            if not data:
                poller.unregister(stream)
                del streams[descriptor]
                stream.close()


def raise_descriptors():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))


def networks(tap):
    kvmbake = lambda mtu, netns: [tap, "--netns", netns, "--mtu", str(mtu)]
    # Root stays root, so that the namespace of another's making can be entered; no ports either way.
    pasta = lambda mtu, netns: (
        f"pasta -f -q --runas 0 --netns-only --config-net -4 -a {GUEST} -n 24 -g {GATEWAY} -m {mtu} "
        f"-I tap0 -t none -u none -T none -U none --netns {netns}"
    ).split()
    slirp = lambda mtu, netns: f"slirp4netns -c -m {mtu} --netns-type=path {netns} tap0".split()
    return [
        Network("kvmbake", kvmbake, False),
        Network("kvmbake, no offloads", lambda *on: [*kvmbake(*on), "--no-offload"], False),
        Network("pasta", pasta, True),
        Network("slirp4netns", slirp, True),
    ]


TABLES = ["Gbit/s", "CPU s per GB", "latency", "idle"]
ROWS = [(down, streams, mtu) for mtu in (1500, 65520) for streams in (1, 8) for down in (False, True)]


def title(down, streams, mtu):
    return f"{'down' if down else 'up'}, {streams} stream{'s' * (streams > 1)}, MTU {mtu}"


def measure(network, seconds, only):
    """Returns every figure of a program, by its table and row."""
    figures = {}
    for mtu in (1500, 65520):
        rows = [row for row in ROWS if row[2] == mtu and only in title(*row)]
        if not rows:
            continue
        with network.running(mtu) as net:
            for down, streams, _ in rows:
                speed, cost = net.iperf(seconds, down, streams)
                figures["Gbit/s", title(down, streams, mtu)] = speed
                figures["CPU s per GB", title(down, streams, mtu)] = cost
    if only in "latency":
        with network.running(1500) as net:
            figures["latency", "round trip, µs"] = net.round_trips(seconds)
            figures["latency", "connections per second"] = net.connections(seconds)
    if only in "idle":
        with network.running(1500) as net:
            for down in (False, True):
                name = "down" if down else "up"
                # Alone, beside, alone: what drifts meanwhile falls on both.
                first = net.iperf(seconds, down, 1)
                with net.idle(IDLE):
                    beside = net.iperf(seconds, down, 1)
                last = net.iperf(seconds, down, 1)
                alone = [(one + other) / 2 for one, other in zip(first, last)]
                figures["idle", f"share of throughput, {name}"] = beside[0] / alone[0]
                figures["idle", f"share of CPU s per GB, {name}"] = beside[1] / max(alone[1], 0.01)
    return figures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tap", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose titles have this word")
    parser.add_argument("--programs", default="", help="programs whose names begin so")
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        return echo()
    if options.tap is None:
        parser.error("the tap example is missing: cargo build --release -p kvmbake-net --example tap")
    for program, package in PACKAGES.items():
        if not shutil.which(program):
            sys.exit(f"{program} is missing: install Debian's package {package}")
    if os.geteuid() != 0:
        sys.exit("network namespaces and TAP devices need root")
    raise_descriptors()
    programs = [
        network
        for network in networks(str(options.tap.resolve()))
        if network.title.startswith(options.programs)
    ]
    rounds = []
    for number in range(options.rounds):
        rounds.append([])
        for network in programs:
            print(f"round {number + 1} of {options.rounds}: {network.title}", file=sys.stderr)
            rounds[-1].append(measure(network, options.seconds, options.only))
    table = None
    # One table after the other, the rows as they were measured.
    for key in sorted(rounds[0][0], key=lambda key: TABLES.index(key[0])):
        cells = [statistics.median(figures[key] for figures in column) for column in zip(*rounds)]
        if key[0] != table:
            table = key[0]
            heads = [network.title for network in programs]
            print(f"\n| {table} | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
        print(f"| {key[1]} | {' | '.join(f'{cell:.3g}' for cell in cells)} |")


if __name__ == "__main__":
    main()
