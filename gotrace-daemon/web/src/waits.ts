// Who waits for whom, of a snapshot, and where each stands in a picture of it: those that wait on the left, then what they
// wait for, then those that hold it, who may wait themselves.
import { count, place, plural } from "./format";
import type { WaitEdge, WaitGroup, WaitObject } from "./types";

export interface Waits {
  time_unix_nano: number;
  referencesComplete: boolean;
  holdersUnknown: string | null;
  locksNotSearched: number;
  groups: WaitGroup[];
  objects: WaitObject[];
  edges: WaitEdge[];
  objectsLeftOut: number;
  goroutinesLeftOut: number;
  waitsUnreadable: number;
}

/** The lines of gotrace.graph/1. */
export function parse(lines: Record<string, unknown>[]): Waits {
  const of = <T>(name: string) => lines.flatMap((line) => (line[name] ? [line[name] as T] : []));
  const header = (lines[0] ?? {}) as Record<string, never>;
  const edges = of<WaitEdge>("edge");
  // Where it is certain who holds it, others only have its address.
  const certain = new Set(edges.filter(({ evidence }) => evidence === "locked").map(({ object }) => object));
  const known = edges.map((edge): WaitEdge => (edge.kind === "holds" && edge.evidence !== "locked" && certain.has(edge.object) ? { ...edge, kind: "refers" } : edge));
  const summary = (of<Record<string, number>>("summary")[0] ?? {}) as Record<string, number>;
  return {
    time_unix_nano: header.time_unix_nano ?? 0,
    referencesComplete: header.references_complete ?? false,
    holdersUnknown: header.holders_unknown ?? null,
    locksNotSearched: header.locks_not_searched ?? 0,
    groups: of<WaitGroup>("group"),
    objects: of<WaitObject>("object"),
    edges: known,
    objectsLeftOut: summary.objects_left_out ?? 0,
    goroutinesLeftOut: summary.goroutines_left_out ?? 0,
    waitsUnreadable: summary.waits_unreadable ?? 0,
  };
}

const KINDS: Record<string, [one: string, many: string]> = {
  chan: ["channel", "channels"],
  mutex: ["Mutex", "Mutexes"],
  rwmutex: ["RWMutex", "RWMutexes"],
  waitgroup: ["WaitGroup", "WaitGroups"],
  cond: ["Cond", "Conds"],
  semaphore: ["semaphore", "semaphores"],
};

/** The colour of an object. */
export function kindOf({ kind }: WaitObject): string {
  return kind === "chan" ? "chan" : "lock";
}

/** `Mutex 0xc000…`, `11 channels` */
export function objectName({ kind, count: n, address }: WaitObject): string {
  const [one, many] = KINDS[kind] ?? [kind, kind];
  return n === 1 ? `${one} ${address}` : `${count(n)} ${many}`;
}

/** What else holds of it. */
export function objectFacts({ kind, count: n, address, len, cap, closed }: WaitObject): string {
  const facts = [n > 1 && `for example ${address}`];
  if (kind === "chan" && cap != null && n === 1) facts.push(cap ? `${len} of ${cap} elements buffered` : "unbuffered");
  if (closed) facts.push("closed");
  return facts.filter(Boolean).join(", ");
}

/** `8 × main.customer (main.go:131)` */
export function groupName(of: WaitGroup): string {
  return `${count(of.count)} × ${place(of.own_code ?? of.entry)}`;
}

export function doing({ state, wait_reason }: WaitGroup): string {
  return wait_reason ?? state;
}

export interface At {
  /** `g3`, `o1` */
  id: string;
  group: WaitGroup | null;
  object: WaitObject | null;
  column: number;
  row: number;
}

export interface Picture {
  nodes: At[];
  edges: { from: At; to: At; edge: WaitEdge }[];
  columns: number;
  rows: number;
  /** Objects that are in the list only. */
  objectsLeft: number;
  /** Groups that are in the list only. */
  groupsLeft: number;
}

/** Objects, and groups at each, that are drawn. */
const OBJECTS = 16;
const GROUPS = 6;

/** Places for the objects that most wait on, those that wait on them, and those that hold them or may. */
export function draw({ groups, objects, edges }: Waits): Picture {
  const drawn = [...objects].sort((a, b) => b.waiting - a.waiting).slice(0, OBJECTS);
  const shown: WaitEdge[] = [];
  let groupsLeft = 0;
  for (const { id } of drawn) {
    const of = edges.filter(({ object }) => object === id);
    const held = of.filter(({ kind }) => kind === "holds");
    const waits = of.filter(({ kind }) => kind === "waits").sort((a, b) => b.count - a.count);
    // Where it is known who holds it, whoever else has its address is in the list only.
    const refers = held.length ? [] : of.filter(({ kind }) => kind === "refers");
    for (const some of [waits, held, refers]) {
      shown.push(...some.slice(0, GROUPS));
      groupsLeft += Math.max(0, some.length - GROUPS);
    }
  }
  // From who waits to what, and from there to who holds it.
  const next = new Map<string, string[]>();
  const link = (from: string, to: string) => next.set(from, [...(next.get(from) ?? []), to]);
  for (const { group, object, kind } of shown) {
    if (kind === "waits") link(`g${group}`, `o${object}`);
    else link(`o${object}`, `g${group}`);
  }
  const ids = [...new Set(shown.flatMap(({ group, object }) => [`g${group}`, `o${object}`]))];
  const column = columns(ids, next);
  const nodes = new Map<string, At>();
  const inColumn: At[][] = [];
  for (const id of ids) {
    const n = Number(id.slice(1));
    const group = id[0] === "g" ? (groups.find((one) => one.id === n) ?? null) : null;
    const object = id[0] === "o" ? (objects.find((one) => one.id === n) ?? null) : null;
    const at: At = { id, group, object, column: column.get(id) ?? 0, row: 0 };
    nodes.set(id, at);
    (inColumn[at.column] ??= []).push(at);
  }
  arrange(inColumn, next, nodes);
  const all = shown.flatMap((edge) => {
    const [group, object] = [nodes.get(`g${edge.group}`), nodes.get(`o${edge.object}`)];
    if (!group || !object) return [];
    return [edge.kind === "waits" ? { from: group, to: object, edge } : { from: object, to: group, edge }];
  });
  return {
    nodes: [...nodes.values()],
    edges: all,
    columns: inColumn.length,
    rows: Math.max(0, ...[...nodes.values()].map(({ row }) => row + 1)),
    objectsLeft: objects.length - drawn.length,
    groupsLeft,
  };
}

/** Each as far to the right as the longest way to it; a way that comes back to where it was counts no further. */
function columns(ids: string[], next: Map<string, string[]>): Map<string, number> {
  const state = new Map<string, "open" | "done">();
  const order: string[] = [];
  const back = new Set<string>();
  const visit = (id: string): void => {
    state.set(id, "open");
    for (const to of next.get(id) ?? []) {
      if (state.get(to) === "open") back.add(`${id} ${to}`);
      else if (!state.has(to)) visit(to);
    }
    state.set(id, "done");
    order.push(id);
  };
  const targets = new Set([...next.values()].flat());
  for (const id of [...ids.filter((id) => !targets.has(id)), ...ids]) if (!state.has(id)) visit(id);
  const column = new Map<string, number>();
  for (const id of order.reverse()) {
    const at = column.get(id) ?? 0;
    column.set(id, at);
    for (const to of next.get(id) ?? []) {
      if (!back.has(`${id} ${to}`)) column.set(to, Math.max(column.get(to) ?? 0, at + 1));
    }
  }
  return column;
}

/** Rows beside their neighbours': each column by the mean row of those that lead to it, then a row each. */
function arrange(inColumn: At[][], next: Map<string, string[]>, nodes: Map<string, At>): void {
  const neighbours = new Map<string, At[]>();
  for (const [from, all] of next) {
    for (const to of all) {
      const [a, b] = [nodes.get(from)!, nodes.get(to)!];
      neighbours.set(from, [...(neighbours.get(from) ?? []), b]);
      neighbours.set(to, [...(neighbours.get(to) ?? []), a]);
    }
  }
  inColumn.forEach((column) => column.forEach((at, row) => (at.row = row)));
  for (let turn = 0; turn < 4; turn++) {
    const order = turn % 2 ? [...inColumn].reverse() : inColumn;
    for (const column of order) {
      const mean = (at: At) => {
        const of = neighbours.get(at.id) ?? [];
        return of.length ? of.reduce((sum, { row }) => sum + row, 0) / of.length : at.row;
      };
      const by = column.map((at) => [mean(at), at] as const).sort((a, b) => a[0] - b[0]);
      by.forEach(([, at], row) => (at.row = row));
    }
  }
  // In the middle of the tallest column.
  const tallest = Math.max(...inColumn.map(({ length }) => length), 0);
  for (const column of inColumn) for (const at of column) at.row += (tallest - column.length) / 2;
}

/** `2 objects, 8 goroutines wait` */
export function summary({ objects, edges }: Waits): string {
  const waiting = objects.reduce((sum, one) => sum + one.waiting, 0);
  const held = new Set(edges.filter(({ kind }) => kind === "holds").map(({ object }) => object)).size;
  return `${plural(waiting, "goroutine waits", "goroutines wait")} at ${plural(objects.length, "lock or channel", "locks and channels")}; of ${count(held)} a holder is known or likely`;
}
