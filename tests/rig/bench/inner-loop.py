#!/usr/bin/env python3
"""Prints the table of inner-loop.tar, which inner-loop.sh has left. Usage: inner-loop.py FILE"""
import json, sys, tarfile

archive = tarfile.open(sys.argv[1])

def content(name):
    return archive.extractfile(f"./{name}" if name.endswith(".json") else name).read().decode()

base, cpus, *times = content("times.txt").split()
cold_off, cold_on, unchanged, changed = map(float, times)

def events(name):
    return [json.loads(line) for line in content(f"{name}.json").splitlines()]

def seconds(name, *stages):
    return sum(e["seconds"] for e in events(name) if e["event"] == "finished" and e["stage"] in stages)

off, on = events("cold-off"), events("cold-on")
boot = seconds("cold-off", "boot", "ssh", "cloud-init")
restore = seconds("changed", "boot", "ssh")
step = seconds("changed", "step")
rows = []
def row(what, value, part=None, of=None, goal=None):
    share = f"{100 * value / part:6.1f} % of {of}" if part else ""
    rows.append((what, f"{value:.2f}", share, goal or ""))

row("cold build, cache off", cold_off)
row("cold build, cache on", cold_on, cold_off, "cache off", "110 %")
row("unchanged build", unchanged, cold_on, "the first build", "2 %")
row("cold boot-to-SSH", boot)
row("restore-to-command", restore, boot, "cold boot-to-SSH", "5 %")
row("last of five changed", changed)
row("  beyond the step itself", changed - step, boot, "cold boot-to-SSH", "10 %")
for event in on:
    if event["event"] == "note" and "stood still for" in event["text"]:
        name, pause = event["text"].split(" kept ")[0], event["text"].split("stood still for ")[1]
        row(f"pause at {name}", float(pause.rstrip("s")), boot, "cold boot-to-SSH", "5 %")

print(f"Base {base}, {cpus} processors; seconds (in the rig, so only the ratios count).")
print(f"{'':26} {'seconds':>9}  {'share':32} {'at most':8}")
for what, value, share, goal in rows:
    print(f"{what:26} {value:>9}  {share:32} {goal:8}")

# Memory files are deltas: what a layer's guest had touched is held by its file and those below it.
layers = json.loads(content("layers.json"))
by_id = {layer["id"]: layer for layer in layers}
blocks = {}
for line in content("memory.txt").splitlines():
    count, path = line.split()
    blocks[path.split("/")[0].split("-")[1]] = int(count) * 512

def allocated(layer):
    return blocks.get(layer["id"][:16], 0)

touched, step_of = {}, None
for event in on:
    if event["event"] == "output" and event["line"].startswith("touched "):
        touched[event["step"]] = int(event["line"].split()[1]) * 1024
print(f"{'':26} {'MiB':>9}  {'with those below':>18}  {'used in the guest':>18}")
names = ["one", "two", "three", "four", "five"]
seen = set()
for layer in layers:
    if layer["kind"] == "sealed" or layer["title"] in seen:
        continue
    seen.add(layer["title"])
    total, below = 0, layer
    while below:
        total += allocated(below)
        below = by_id.get(below["parent"])
    used = touched.get(names.index(layer["title"]) + 1) if layer["title"] in names else None
    used = f"{used / 2**20:.1f}" if used else ""
    print(f"memory of {layer['title']:16} {allocated(layer) / 2**20:9.1f}  {total / 2**20:18.1f}  {used:>18}")
