"""nbpatch's sweeps beside TransformerLens's own functions: same process, same weights, taken in turns, medians.

    python tests/benchmarks/sweeps.py                       the whole table
    python tests/benchmarks/sweeps.py --quick               every row on the tiny shape, one turn: a minute at most
    python tests/benchmarks/sweeps.py --shape gpt2 --rows resid_pre z --cells 0     TransformerLens in full too

The report is printed and written to build/bench/sweeps.md and sweeps.json. Exit status 1: two results differ.
Where nnsight and pyvene are installed (`pip install -e ".[bench]"`), resid_pre has a column for each.
"""

import argparse
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# Before anything imports a Hugging Face library: nothing is asked of the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from sweep_contest import Outcome, Peak, contest
from sweep_models import SHAPES, make_model
from sweep_report import describe_machine, exact, one_line, write
from sweep_rows import LONG, LONG_PLACES, PLACES, ROWS, USUAL, Row

PEAK_SIZE, QUICK_PEAK_SIZE = 4096, 512
CELLS, QUICK_CELLS = 24, 8


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the command line's options, with what --quick stands for filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shape, first p0, one turn, every row")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="NAME", help=f"of: {' '.join(ROWS)}")
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), help="default: all, each with its rows")
    parser.add_argument("--p0", nargs="+", type=int, help="only these positions of the first difference")
    parser.add_argument("--long", action="store_true", help="64 and 256 tokens as well")
    parser.add_argument("--cells", type=int, help=f"TransformerLens's cells a turn, 0: all; default {CELLS}, tiny all")
    parser.add_argument("--repeats", type=int, help="turns; default 3; 0: compare values only")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="default: what torch chooses")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="written into the report")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "build" / "bench")
    options = parser.parse_args(arguments)
    if options.quick:
        options.shape = options.shape or ["tiny"]
        options.rows = options.rows or list(ROWS)
        options.p0 = options.p0 or [PLACES[0][1][0]]
        options.repeats = 1 if options.repeats is None else options.repeats
        options.cells = QUICK_CELLS if options.cells is None else options.cells
    options.shape = options.shape or list(SHAPES)
    options.repeats = 3 if options.repeats is None else options.repeats
    return options


def cells_of(options: argparse.Namespace, shape: str) -> int | None:
    """Returns how many cells TransformerLens is timed on in a turn, None for all."""
    if options.cells is None:
        return None if shape == "tiny" else CELLS
    return options.cells or None


def agenda(options: argparse.Namespace, shape: str) -> Iterator[tuple[Row, int, int]]:
    """Yields what is to be run on a shape: row, number of tokens, position of the first difference."""
    lengths = [(PLACES, options.rows or USUAL[shape])]
    if options.long:
        lengths.append((LONG_PLACES, options.rows or LONG))
    for places, names in lengths:
        for tokens, firsts in places:
            for name in names:
                for p0 in firsts:
                    if options.p0 is None or p0 in options.p0:
                        yield ROWS[name], tokens, p0


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    peak = Peak(options.device, QUICK_PEAK_SIZE if options.quick else PEAK_SIZE)
    outcomes: list[Outcome] = []
    text = ""
    for shape in options.shape:
        model = make_model(shape, options.device)
        for row, tokens, p0 in agenda(options, shape):
            cells = cells_of(options, shape)
            outcome = contest(model, shape, row, tokens=tokens, p0=p0, repeats=options.repeats, cells=cells, peak=peak)
            outcomes.append(outcome)
            print(one_line(outcome), flush=True)
            # After every row, so that what is interrupted is not lost.
            text = write(options.out, describe_machine(options.device, options.date, peak), outcomes)
    print(f"\n{text}\n{options.out}/sweeps.md, sweeps.json")
    return 0 if outcomes and all(map(exact, outcomes)) else 1


if __name__ == "__main__":
    sys.exit(main())
