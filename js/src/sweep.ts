// A sweep on the page: what was measured in each cell, as effects and as shares of the gap.

import type { Axis, Bench, Delivery, Direction, Spec, SweepMeta } from "./protocol";

export const MEASURED = 0;
export const EXACT = 1;
export const NOT_RUN = 2;
export const NO_POSITION = 3;
export const FAILED = 4;
/** No gap to share out: the state of a measured cell whose share has no meaning. */
export const NO_GAP = 5;

/** Below this size of clean − corrupted, in the metric's unit, there is nothing to share out. */
const LEAST_GAP = 1e-4;

/** The pair number that means "the mean over all pairs". */
export const ALL = -1;

export interface Value {
  state: number;
  /** m(patched) − m(base), in the metric's unit. */
  effect: number;
  /** effect / gap: what the colour shows. */
  share: number;
  patched: number;
}

export interface Baseline {
  clean: number;
  corrupted: number;
  gap: number;
}

export class Sweep {
  readonly cells: number;

  constructor(
    readonly meta: SweepMeta,
    private readonly arrays: Delivery["arrays"],
    private readonly bench: Bench,
  ) {
    this.cells = meta.sizes.reduce((a, b) => a * b, 1);
  }

  get pairs(): number {
    return this.bench.pairs.length;
  }

  /** Whether this sweep holds what a specification asks for; one in both directions holds each of them. */
  serves(spec: Spec): boolean {
    const { component, over, metrics, directions } = this.meta;
    return (
      component === spec.component &&
      over.join() === spec.over.join() &&
      metrics.includes(spec.metric) &&
      directionsOf(spec).every((one) => directions.includes(one))
    );
  }

  baseline(metric: string, pair: number): Baseline {
    return baselineOf(this.bench, metric, pair);
  }

  /** Returns one cell's value; for ALL, the ratio of means over the pairs that have it. */
  value(metric: string, direction: Direction, cell: number, pair: number): Value {
    return pair === ALL ? this.mean(metric, direction, cell) : this.single(metric, direction, cell, pair);
  }

  private single(metric: string, direction: Direction, cell: number, pair: number): Value {
    const at = this.place(direction, cell, pair);
    const code = this.arrays.get("state")?.[at] ?? NOT_RUN;
    const patched = this.arrays.get(metric)?.[at] ?? Number.NaN;
    const base = this.baseline(metric, pair);
    const effect = code === EXACT ? 0 : patched - base[direction === "denoising" ? "corrupted" : "clean"];
    const known = code === MEASURED || code === EXACT;
    const flat = Math.abs(base.gap) < LEAST_GAP;
    const state = known && flat ? NO_GAP : code;
    return { state, effect, share: known && !flat ? effect / base.gap : Number.NaN, patched };
  }

  private mean(metric: string, direction: Direction, cell: number): Value {
    const singles = this.perPair(metric, direction, cell);
    const known = singles.filter(({ value }) => Number.isFinite(value.effect));
    const first = known[0];
    if (first === undefined) return singles[0]?.value ?? nothing();
    const effect = average(known.map(({ value }) => value.effect));
    const gap = average(known.map(({ pair }) => this.baseline(metric, pair).gap));
    const exact = known.every(({ value }) => value.state === EXACT);
    const flat = Math.abs(gap) < LEAST_GAP;
    return {
      state: flat ? NO_GAP : exact ? EXACT : MEASURED,
      effect,
      share: flat ? Number.NaN : effect / gap,
      patched: average(known.map(({ value }) => value.patched)),
    };
  }

  perPair(metric: string, direction: Direction, cell: number): { pair: number; value: Value }[] {
    return Array.from({ length: this.pairs }, (_, pair) => ({
      pair,
      value: this.single(metric, direction, cell, pair),
    }));
  }

  /** Counts the (direction, cell, pair) runs in each state, in the directions asked for. */
  counts(directions: Direction[]): number[] {
    const counts = [0, 0, 0, 0, 0];
    const state = this.arrays.get("state");
    for (const direction of directions) {
      const start = this.place(direction, 0, 0);
      for (let at = start; at < start + this.cells * this.pairs; at++) {
        const code = state?.[at] ?? NOT_RUN;
        counts[code] = (counts[code] ?? 0) + 1;
      }
    }
    return counts;
  }

  private place(direction: Direction, cell: number, pair: number): number {
    return (this.meta.directions.indexOf(direction) * this.cells + cell) * this.pairs + pair;
  }
}

export function baselineOf(bench: Bench, metric: string, pair: number): Baseline {
  const runs = bench.baselines[metric] ?? { clean: [], corrupted: [] };
  const pick = (values: number[]) => (pair === ALL ? average(values) : (values[pair] ?? Number.NaN));
  const clean = pick(runs.clean);
  const corrupted = pick(runs.corrupted);
  return { clean, corrupted, gap: clean - corrupted };
}

export function directionsOf(spec: Spec): Direction[] {
  return spec.direction === "both" ? ["denoising", "noising"] : [spec.direction];
}

/** Returns the flat number of a cell given by its index along each axis. */
export function cellNumber(over: readonly Axis[], sizes: readonly number[], at: Partial<Record<Axis, number>>): number {
  return over.reduce((flat, axis, i) => flat * (sizes[i] ?? 1) + (at[axis] ?? 0), 0);
}

/** A bootstrap over pairs of the ratio of means, seeded so that the same cell always shows the same interval. */
export function interval(effects: readonly number[], gaps: readonly number[], draws = 2000): [number, number] {
  const n = effects.length;
  let seed = 0x9e3779b9;
  const next = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const ratios = Array.from({ length: draws }, () => {
    let above = 0;
    let below = 0;
    for (let i = 0; i < n; i++) {
      const pick = Math.floor(next() * n);
      above += effects[pick] ?? 0;
      below += gaps[pick] ?? 0;
    }
    return above / below;
  }).sort((a, b) => a - b);
  const at = (share: number) => ratios[Math.round(share * (draws - 1))] ?? Number.NaN;
  return [at(0.025), at(0.975)];
}

export function average(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

function nothing(): Value {
  return { state: NOT_RUN, effect: Number.NaN, share: Number.NaN, patched: Number.NaN };
}
