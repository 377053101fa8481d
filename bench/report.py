#!/usr/bin/env python3
"""Tables of benchmark results: of `pdvm bench -o json` and of llama-bench's `-o json`.

    bench/report.py [--bars] [--merge] FILE...

Rows of the same program, model, test, mode and threads in several files become one: their samples
are put together. --bars adds what is asked of the CPU engine, with the figures; --merge prints the
merged results of pdvm as JSON instead of a table, for `pdvm bench --compare`.
"""

import argparse
import json
import statistics
import sys


def stats(row):
    samples = row["samples"]
    row["mean"] = statistics.fmean(samples)
    row["deviation"] = statistics.stdev(samples) if len(samples) > 1 else 0.0
    row["median"] = statistics.median(samples)
    row["best"] = max(samples)


def own_rows(result):
    models = {m["name"]: m for m in result["models"]}
    for row in result["rows"]:
        model = models[row["model"]]
        yield dict(row, program="pdvm " + result["pdvm"]["commit"], size=model["bytes"],
                   weights=model["weights"], bits=model["bits_per_weight"],
                   samples=list(row["samples"]), shares=list(row.get("shares", [])))


def peer_rows(result):
    for test in result:
        name = f"pp{test['n_prompt']}" if test["n_prompt"] else f"tg{test['n_gen']}"
        if test["n_prompt"] and test["n_gen"]:
            name = f"pp{test['n_prompt']}+tg{test['n_gen']}"
        depth = test.get("n_depth", 0)
        yield {"program": "llama-bench " + str(test.get("build_commit", "")),
               "model": test.get("model_type", test.get("model_filename", "?")),
               "backend": str(test.get("backends", "cpu")).lower(), "mode": "",
               "threads": test["n_threads"], "test": name + (f" @ d{depth}" if depth else ""),
               "n_prompt": test["n_prompt"], "size": test["model_size"],
               "weights": test["model_n_params"],
               "bits": 8 * test["model_size"] / max(test["model_n_params"], 1),
               "bytes_per_token": 0, "shares": [],
               "samples": list(test.get("samples_ts") or [test["avg_ts"]])}


def load(paths):
    """The files' contents, and their rows with those of the same thing merged, in order."""
    results, rows = [], {}
    for path in paths:
        with open(path, encoding="utf-8") as f:
            result = json.load(f)
        own = isinstance(result, dict)
        if own and result.get("format") != "pdvm-bench-1":
            sys.exit(f"{path}: neither a result of pdvm bench nor one of llama-bench")
        results += [result] if own else []
        for row in own_rows(result) if own else peer_rows(result):
            key = tuple(row[k] for k in ("program", "model", "test", "mode", "threads"))
            if key in rows:
                rows[key]["samples"] += row["samples"]
                rows[key]["shares"] += row["shares"]
            else:
                rows[key] = row
    for row in rows.values():
        stats(row)
    return results, list(rows.values())


def table(rows):
    print("| program | model | size | bits/w | backend | threads | test | t/s | median "
          "| MB/token | GB/s | of bandwidth |")
    print("| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for r in rows:
        generation = not r["n_prompt"] and r["bytes_per_token"] > 0
        cells = [r["program"], r["model"], f"{r['size'] / 2**20:.0f} MiB", f"{r['bits']:.2f}",
                 r["backend"] + (f", {r['mode']}" if r["mode"] not in ("", "token") else ""),
                 str(r["threads"]), r["test"], f"{r['mean']:.2f} ± {r['deviation']:.2f}",
                 f"{r['median']:.2f}"]
        if generation:
            cells += [f"{r['bytes_per_token'] / 1e6:.1f}",
                      f"{r['bytes_per_token'] * r['median'] / 1e9:.1f}",
                      f"{100 * statistics.median(r['shares']):.0f} %" if r["shares"] else ""]
        else:
            cells += ["", "", ""]
        print("| " + " | ".join(cells) + " |")


def circumstances(results):
    seen = set()
    for result in results:
        m = result["machine"]
        for line in [f"machine: {m['cpu']}, {m['processors']} processors, "
                     f"{m['memory'] / 2**30:.1f} GiB of memory, last-level cache "
                     f"{m['cache'] / 2**20:.1f} MiB, {m['system']}",
                     f"build: pdvm {result['pdvm']['version']} ({result['pdvm']['commit']}), "
                     f"{result['date']}",
                     f"command: `{result['command']}`"] + \
                [f"read bandwidth, {b['threads']} thread{'s' * (b['threads'] > 1)}: median "
                 f"{b['median'] / 1e9:.1f} GB/s, best {b['best'] / 1e9:.1f} GB/s"
                 for b in result["bandwidth"] if b["samples"]] + \
                ["note: " + n for n in result["notes"]]:
            if line not in seen:
                print("- " + line)
            seen.add(line)


def bars(results, rows):
    """What the CPU engine is asked for: name, figure, bar."""

    def find(ending, threads, prompt=False):
        for r in rows:
            if r["model"].endswith(ending) and r["threads"] == threads and \
                    bool(r["n_prompt"]) == prompt:
                return r
        return None

    def ratio(a, b):
        """Median of the quotients within each repetition."""
        return statistics.median(x / y for x, y in zip(a["samples"], b["samples"]))

    lines = []
    for ending in ("int8 dense", "int8 50 %", "int8 60 %", "int8 70 %"):
        row = find(ending, 1)
        if row and row["shares"]:
            lines.append((f"{ending}, 1 thread: share of the bandwidth",
                          statistics.median(row["shares"]), 0.85))
    dense, most = find("int8 dense", 1), find("int8 90 %", 1)
    if dense and most:
        lines.append(("int8 90 % / int8 dense, 1 thread", ratio(most, dense), 2.5))
    for result in results:  # of one run each, where both took turns
        own = [r for r in result["rows"] if r["threads"] == 1 and not r["n_prompt"]
               and r["model"].endswith("50 %")]
        half = next((r for r in own if r["model"].endswith("int8 50 %")), None)
        for r in own:
            if half and "lut4" in r["model"]:
                name = r["model"][r["model"].index("lut4"):]
                lines.append((f"{name} / int8 50 %, 1 thread", ratio(r, half), 1.5))
    memory = {b["threads"]: b["median"] for r in results for b in r["bandwidth"] if b["samples"]}
    for ending in ("int8 dense", "int8 50 %"):
        one, two = find(ending, 1), find(ending, 2)
        if one and two:
            gain = f" (the bandwidth: {memory[2] / memory[1]:.2f})" if 1 in memory and 2 in memory \
                else ""
            lines.append((f"{ending}, 2 threads / 1 thread{gain}", ratio(two, one), 1.3))
    for ending in ("int8 dense", "int8 50 %"):
        row = find(ending, 1, prompt=True)
        if row:
            lines.append((f"{ending}, {row['test']}, 1 thread: t/s", row["median"], 215))
    print("\n| bar | measured | asked | |\n| --- | ---: | ---: | --- |")
    for name, value, bar in lines:
        print(f"| {name} | {value:.2f} | {bar:g} | {'yes' if value >= bar else 'no'} |")


def merged(results, rows):
    """One result of pdvm with all rows, as `pdvm bench --compare` reads it."""
    out = dict(results[0])
    names = set()
    out["models"] = [m for r in results for m in r["models"]
                     if not (m["name"] in names or names.add(m["name"]))]
    own = ("program", "size", "weights", "bits")
    out["rows"] = [{k: v for k, v in row.items() if k not in own} for row in rows
                   if row["program"].startswith("pdvm ")]
    bandwidth = {}
    for result in results:
        for b in result["bandwidth"]:
            bandwidth.setdefault(b["threads"], []).extend(b["samples"])
    out["bandwidth"] = []
    for threads, samples in sorted(bandwidth.items()):
        b = {"threads": threads, "samples": samples}
        if samples:
            stats(b)
        out["bandwidth"].append(b)
    out["command"] = "; ".join(dict.fromkeys(r["command"] for r in results))
    out["notes"] = list(dict.fromkeys(n for r in results for n in r["notes"]))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", action="store_true")
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    results, rows = load(args.files)
    if args.merge:
        json.dump(merged(results, rows), sys.stdout, indent=2)
        print()
        return
    table(rows)
    print()
    circumstances(results)
    if args.bars:
        bars(results, rows)


if __name__ == "__main__":
    main()
