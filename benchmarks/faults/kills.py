"""kill -9 at random moments, with up to four runners on one store.

    python -m benchmarks.faults.kills --kills 1000 --out benchmarks/kills.jsonl

Every round is a store of its own, run until it is finished: runners are killed and begun anew;
now and then the claims of the killed one look like another host's, expired. A line is written a
round; a second command goes on where the first ended. Rounds are seeded by their number; when a
kill hits is up to the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.owners import count_left, estrange
from benchmarks.faults.trial import Ground, Trial

ROUND_S = 300.0


def main() -> None:
    play_rounds("kill -9 at random moments", lambda folder: partial(play, Ground(folder)))


def play_rounds(words: str, prepare: Callable[[Path], Callable[[int], dict[str, Any]]]) -> None:
    """The command of a campaign: rounds by their number until there were enough kills.

    `prepare`: from a folder for all of them, what plays a round.
    """
    parser = argparse.ArgumentParser(description=words)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON, a round each")
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rounds = [json.loads(line) for line in lines]
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        play_round = prepare(Path(folder))
        while sum(each["kills"] for each in rounds) < options.kills:
            rounds.append(play_round(len(rounds)))
            with options.out.open("a") as file:
                file.write(json.dumps(rounds[-1]) + "\n")
    for name in rounds[0]:
        if name not in ("round", "runners"):
            print(f"{name:12}{sum(each[name] for each in rounds):8}")
    print(f"{'rounds':12}{len(rounds):8}")


def play(ground: Ground, number: int) -> dict[str, Any]:
    """One store, from empty to finished under kills; counts of what went wrong."""
    chance, runners = random.Random(number), 1 + number % 4
    kills = lost = twice = 0
    finished: set[str] = set()
    with ground.trial(empty=True) as trial:
        running = [trial.start_run() for _ in range(runners)]
        deadline = time.monotonic() + ROUND_S
        while len(finished) < len(trial.reference) and time.monotonic() < deadline:
            time.sleep(chance.uniform(0.02, 0.8))
            victim = chance.randrange(runners)
            if running[victim].poll() is None:
                running[victim].kill()
                kills += 1
                if chance.random() < 0.3:
                    estrange(trial.store.root, running[victim].pid)
            # What is finished before this look at the journal is never begun after it.
            whole = _find_whole(trial)
            lost += len(finished - whole)
            begun = len(trial.computed())
            finished |= whole
            running[victim] = trial.start_run()
            time.sleep(chance.uniform(0.0, 0.2))
            twice += sum(key in whole for key in trial.computed()[begun:])
        trial.spoken += [each.wait() for each in running]
        records = len(list((trial.store.root / "failures").glob("*.json")))
        trial.run()
        left = sum(count_left(trial.store.root).values())
        return {
            "round": number,
            "runners": runners,
            "kills": kills,
            "values": len(trial.reference),
            "lost": lost,
            "twice": twice,
            "differing": len(trial.wrong()),
            "failures": records,
            "left": left,
        }


def _find_whole(trial: Trial) -> set[str]:
    return {key for key in trial.reference if trial.store.has(key)}


if __name__ == "__main__":
    main()
