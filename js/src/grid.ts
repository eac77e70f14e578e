// Which axis goes where: the last swept axis across, the one or two before it down, any further ones held fixed.

import type { Axis, SweepMeta } from "./protocol";
import { cellNumber } from "./sweep";

export type Place = Partial<Record<Axis, number>>;

export interface Row {
  at: Place;
  /** The row's own label, and the label of the group that it begins ("" inside one). */
  label: string;
  group: string;
}

export interface Grid {
  rows: Row[];
  cols: number;
  /** The axis across; null when one column holds everything. */
  across: Axis | null;
  /** Whether columns are positions and stand under the token strips. */
  positions: boolean;
  /** Axes with neither rows nor columns: they are picked. */
  fixed: Axis[];
  /** How many rows make one group; 0 = no groups. */
  grouped: number;
}

export const AXIS_WORDS: Record<Axis, string> = {
  layer: "layer",
  head: "head",
  pos: "position",
  dest: "from position",
  src: "to position",
};

export function makeGrid(meta: SweepMeta): Grid {
  const { over } = meta;
  const across = over.length === 1 && over[0] === "layer" ? null : (over.at(-1) ?? null);
  const rest = across === null ? [...over] : over.slice(0, -1);
  const fixed = rest.length > 2 ? rest.slice(0, -1) : [];
  const down = rest.slice(fixed.length);
  const size = (axis: Axis) => meta.sizes[over.indexOf(axis)] ?? 1;
  return {
    rows: makeRows(down, size, meta),
    cols: across === null ? 1 : size(across),
    across,
    positions: across === "pos" || across === "src" || across === "dest",
    fixed,
    grouped: down.length === 2 ? size(down[1] as Axis) : 0,
  };
}

function makeRows(down: Axis[], size: (axis: Axis) => number, meta: SweepMeta): Row[] {
  const [outer, inner] = down;
  if (outer === undefined) return [{ at: {}, label: "", group: "" }];
  const outers = Array.from({ length: size(outer) }, (_, i) => i);
  if (inner === undefined) {
    return outers.map((i) => ({ at: { [outer]: i }, label: axisLabel(outer, i, meta, i === 0), group: "" }));
  }
  const inners = Array.from({ length: size(inner) }, (_, i) => i);
  return outers.flatMap((i) =>
    inners.map((j) => ({
      at: { [outer]: i, [inner]: j },
      label: axisLabel(inner, j, meta, false),
      group: j === 0 ? axisLabel(outer, i, meta, i === 0) : "",
    })),
  );
}

function axisLabel(axis: Axis, index: number, meta: SweepMeta, named: boolean): string {
  const label = axis === "head" ? (meta.head_labels[index] ?? String(index)) : String(index);
  return named ? `${axis === "layer" || axis === "head" ? axis : "at"} ${label}` : label;
}

/** Returns the flat cell at a row and column, with the fixed axes where they are held. */
export function cellAt(grid: Grid, meta: SweepMeta, held: Place, row: number, col: number): number {
  return cellNumber(meta.over, meta.sizes, placeAt(grid, held, row, col));
}

export function placeAt(grid: Grid, held: Place, row: number, col: number): Place {
  const place: Place = { ...grid.rows[row]?.at };
  for (const axis of grid.fixed) place[axis] = held[axis] ?? 0;
  if (grid.across !== null) place[grid.across] = col;
  return place;
}

/** Returns the row and column of a place, or null when the place is not on this grid. */
export function findPlace(grid: Grid, place: Place | null): { row: number; col: number } | null {
  if (place === null) return null;
  const col = grid.across === null ? 0 : place[grid.across];
  const row = grid.rows.findIndex(({ at }) => Object.entries(at).every(([axis, i]) => place[axis as Axis] === i));
  return col === undefined || col >= grid.cols || row < 0 ? null : { row, col };
}
