"""Run the fuzzers for a while; print a reproduction of every failure, and how many cases ran; on stderr, the progress."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # helpers

PROGRESS_SECONDS = 30


def main() -> int:
    from tests.fuzz.fuzzers import FUZZERS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for all fuzzers together (default: 60)")
    parser.add_argument("--cases", type=int, help="cases per fuzzer, instead of --seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case only")
    parser.add_argument("--only", default=",".join(FUZZERS), help=f"some of {', '.join(FUZZERS)}, separated by commas")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name]
    if unknown := set(names) - set(FUZZERS):
        parser.error(f"--only names {', '.join(sorted(unknown))}; expected some of {', '.join(FUZZERS)}.")
    failures = 0
    for name in names:
        begin = reported = time.monotonic()
        end = begin + options.seconds / len(names)
        limit = options.cases or (None if options.case is None else 1)
        case, count, failed, interrupted = options.case or 0, 0, 0, False
        try:
            while count < limit if limit else time.monotonic() < end:
                try:
                    FUZZERS[name](options.seed, case)
                except Exception:
                    failed += 1
                    traceback.print_exc()
                    print(
                        f"reproduce: python -m tests.fuzz --only {name} --seed {options.seed} --case {case}", flush=True
                    )
                case, count = case + 1, count + 1
                now = time.monotonic()
                if now >= reported + PROGRESS_SECONDS:
                    remaining = (now - begin) / count * (limit - count) if limit else max(end - now, 0)
                    progress = f"{name}: {count} cases, {failed} failed, {now - begin:.0f} s, {remaining:.0f} s remain"
                    print(progress, file=sys.stderr, flush=True)
                    reported = now
        except KeyboardInterrupt:
            interrupted = True
        print(f"{name}: {count} cases, {failed} failed{', interrupted' if interrupted else ''}", flush=True)
        if interrupted:
            return 128 + signal.SIGINT
        failures += failed
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
