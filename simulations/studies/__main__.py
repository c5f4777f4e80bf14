"""``python -m simulations.studies NAME`` plays a study and writes its page, ``--list`` says which.

A finished trial is kept below ``--work``, so a study that was stopped goes on where it was.
"""

import argparse
import importlib
import signal
import sys
from pathlib import Path

from simulations.studies.page import write_page
from simulations.studies.trials import play_all

STUDIES = {
    "aggregation": "end loss, bytes and tail of each method, with and without momentum",
    "codecs": "end loss and bytes of each codec",
    "privacy": "end loss by privacy budget and method",
    "robustness": "what hostile clients do to each rule",
}
DOCS = Path(__file__).parents[2] / "docs" / "studies"


def main() -> None:
    """Play the study that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies")
    parser.add_argument("name", nargs="?", choices=STUDIES, help="what to study")
    parser.add_argument("--list", action="store_true", help="say what each study compares")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time (default 2)")
    parser.add_argument("--work", type=Path, help="where trials are kept: runs/studies/NAME")
    arguments = parser.parse_args()
    name, seeds = arguments.name, arguments.seeds
    if arguments.list or not name:
        for known, subject in STUDIES.items():
            print(f"{known:12} {subject}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped: the same command goes on."))
    study = importlib.import_module(f"simulations.studies.{name}")
    work = arguments.work or Path("runs") / "studies" / name
    results = play_all(study.trials(range(seeds)), work=work, jobs=arguments.jobs)
    command = f"python -m simulations.studies {name} --seeds {seeds}"
    path = write_page(study.page(results), results, name=name, command=command, docs=DOCS)
    print(f"\n{path.read_text(encoding='utf-8')}\n{path}")


if __name__ == "__main__":
    main()
