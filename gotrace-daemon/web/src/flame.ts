// Stacks as a flame graph: callees below their callers, as wide as what they took.
import type { Sample } from "./pprof";

export interface Node {
  name: string;
  /** What kind of wait most of it is. */
  kind: string;
  value: number;
  /** Of two pictures that are compared what each had; the value is then of what it takes to draw both. */
  before?: number;
  now?: number;
  /** What the value is of, by kind. */
  kinds: Map<string, number>;
  children: Map<string, Node>;
}

export interface Box {
  node: Node;
  parent: Box | null;
  depth: number;
  /** Shares of the whole. */
  x: number;
  width: number;
}

/** Kinds of waits that have a colour. */
export function kindOf(reason: string): string {
  if (/^chan |^select/.test(reason)) return "chan";
  if (/^sync\.|^semacquire|Cond/.test(reason)) return "lock";
  if (/^IO wait|^syscall/.test(reason)) return "io";
  if (/^sleep/.test(reason)) return "sleep";
  return reason ? "other" : "run";
}

function node(name: string): Node {
  return { name, kind: "run", value: 0, kinds: new Map(), children: new Map() };
}

/** From the outermost function to the wait reason. */
function frames({ stack, labels }: Sample): string[] {
  const reason = labels.wait_reason ?? labels.state ?? "";
  // How the runtime parks a goroutine tells nothing that its reason does not.
  const first = stack.findIndex((name) => !name.startsWith("runtime.") && !name.startsWith("internal/runtime"));
  const names = stack.slice(first < 0 ? 0 : first).reverse();
  if (reason) names.push(`[${reason}]`);
  return names;
}

/** A tree of samples, of each its value with this number; the wait reason is the innermost frame. */
export function tree(samples: Sample[], which: number): Node {
  const root = node("all");
  for (const sample of samples) {
    const value = sample.values[which] ?? 0;
    if (value <= 0) continue;
    const kind = kindOf(sample.labels.wait_reason ?? "");
    const names = frames(sample);
    let at = root;
    add(at, kind, value);
    for (const name of names) {
      let child = at.children.get(name);
      if (!child) at.children.set(name, (child = node(name)));
      add((at = child), kind, value);
    }
  }
  settle(root);
  return root;
}

/** Stacks as [`tree`] has them, from the outermost frame to the wait reason, and what each took. */
export function stacks(samples: Sample[], which: number): Map<string, { names: string[]; value: number }> {
  const all = new Map<string, { names: string[]; value: number }>();
  for (const sample of samples) {
    const value = sample.values[which] ?? 0;
    if (value <= 0) continue;
    const names = frames(sample);
    const key = names.join("\n");
    const known = all.get(key);
    if (known) known.value += value;
    else all.set(key, { names, value });
  }
  return all;
}

/** A stack that two pictures differ in. */
export interface Change {
  names: string[];
  before: number;
  now: number;
}

/** Every stack of two pictures. */
export function changes(before: Map<string, { names: string[]; value: number }>, now: Map<string, { names: string[]; value: number }>): Change[] {
  return [...new Set([...before.keys(), ...now.keys()])].map((key) => ({
    names: (now.get(key) ?? before.get(key))!.names,
    before: before.get(key)?.value ?? 0,
    now: now.get(key)?.value ?? 0,
  }));
}

/** A tree of two pictures: frames are as wide as the larger of both, so that what is gone is seen too. */
export function difference(all: Change[]): Node {
  const root = { ...node("all"), before: 0, now: 0 };
  for (const { names, before, now } of all) {
    const take = (to: Node): void => {
      to.before = (to.before ?? 0) + before;
      to.now = (to.now ?? 0) + now;
      to.value += Math.max(before, now);
    };
    let at: Node = root;
    take(at);
    for (const name of names) {
      let child = at.children.get(name);
      if (!child) at.children.set(name, (child = node(name)));
      take((at = child));
    }
  }
  return root;
}

/** How much more or less a frame has than before, as a class of the stylesheet. */
export function shade({ before = 0, now = 0 }: Node): string {
  const larger = Math.max(before, now);
  const share = larger > 0 ? (now - before) / larger : 0;
  if (Math.abs(share) < 0.02) return "same";
  const much = Math.abs(share) > 0.6 ? 3 : Math.abs(share) > 0.25 ? 2 : 1;
  return `${share > 0 ? "grew" : "shrank"} much${much}`;
}

function add(to: Node, kind: string, value: number): void {
  to.value += value;
  to.kinds.set(kind, (to.kinds.get(kind) ?? 0) + value);
}

function settle(of: Node): void {
  of.kind = [...of.kinds].sort((a, b) => b[1] - a[1])[0]?.[0] ?? "run";
  of.children.forEach(settle);
}

/** The widest frames first; those narrower than this share of the whole are left out. */
export function layout(root: Node, least: number): Box[] {
  const boxes: Box[] = [];
  const place = (node: Node, parent: Box | null, depth: number, x: number): void => {
    const width = node.value / root.value;
    if (!(width >= least)) return;
    const box = { node, parent, depth, x, width };
    boxes.push(box);
    let at = x;
    for (const child of [...node.children.values()].sort((a, b) => b.value - a.value)) {
      place(child, box, depth + 1, at);
      at += child.value / root.value;
    }
  };
  place(root, null, 0, 0);
  return boxes;
}
