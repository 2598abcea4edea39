"""`python -m benchmarks [--quick] [subject ...]`"""

import argparse
import signal
import sys
from contextlib import ExitStack

from benchmarks import report
from benchmarks.environments import ENVIRONMENTS, ROOT, BenchmarkError
from benchmarks.report import Report, step
from benchmarks.subjects import (
    Run,
    hit,
    http,
    http_miss,
    http_redis,
    invalidate,
    memory,
    misses,
    nested,
    races,
    ratio,
    redis,
    redis_peers,
    redis_races,
    transactions,
    windows,
)

SUBJECTS = {
    "hit": hit.run,
    "nested": nested.run,
    "misses": misses.run,
    "invalidate": invalidate.run,
    "races": races.run,
    "memory": memory.run,
    "ratio": ratio.run,
    "http": http.run,
    "http-miss": http_miss.run,
    "windows": windows.run,
    "redis": redis.run,
    "redis-peers": redis_peers.run,
    "redis-races": redis_races.run,
    "http-redis": http_redis.run,
    "transactions": transactions.run,
}
PAGE = ROOT / "docs" / "benchmarks.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure asynctag beside others.")
    parser.add_argument("subjects", nargs="*", choices=[[], *SUBJECTS], metavar="subject", help=", ".join(SUBJECTS))
    parser.add_argument("--quick", action="store_true", help="fewer rounds; the page is left as it is")
    parser.add_argument("--fresh", action="store_true", help="update the other libraries now (else once a day)")
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md and its plots as they are")
    asked = parser.parse_args()
    reports: list[Report] = []
    failed: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers and servers are ended
    with ExitStack() as stack:
        for name, environment in ENVIRONMENTS.items():
            step(f"environment of {name}")
            environment.ready(asked.fresh)
        versions = {name: environment.version for name, environment in ENVIRONMENTS.items()}
        machine = report.machine(versions)
        step(machine)
        run = Run(asked.quick, stack)
        for name in asked.subjects or SUBJECTS:
            try:
                one = SUBJECTS[name](run)
            except BenchmarkError as error:
                failed.append(name)
                report.warn(f"{name}: {error}")
                continue
            reports.append(one)
            print(f"\n{one.text()}\n", flush=True)
            if not asked.quick and not asked.no_write:
                report.write(PAGE, PAGE.parent / "bench", [one], machine)
    targets = [target for one in reports for target in one.targets]
    met = sum(target.met for target in targets)
    step(f"{met} of {len(targets)} targets met" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
