// Stacks as a flame graph: callees below their callers, as wide as what they took.
import type { Sample } from "./pprof";

export interface Node {
  name: string;
  /** What kind of wait most of it is. */
  kind: string;
  value: number;
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

/** A tree of samples, of each its value with this number; the wait reason is the innermost frame. */
export function tree(samples: Sample[], which: number): Node {
  const root = node("all");
  for (const { stack, values, labels } of samples) {
    const value = values[which] ?? 0;
    if (value <= 0) continue;
    const reason = labels.wait_reason ?? labels.state ?? "";
    const kind = kindOf(labels.wait_reason ?? "");
    // How the runtime parks a goroutine tells nothing that its reason does not.
    const first = stack.findIndex((name) => !name.startsWith("runtime.") && !name.startsWith("internal/runtime"));
    const names = stack.slice(first < 0 ? 0 : first).reverse();
    if (reason) names.push(`[${reason}]`);
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
