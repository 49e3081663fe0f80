// What views are made of: tables that sort, lines over time, bars, places in the source.
import type { ComponentChildren, RefObject } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { count, none, position, shortName } from "./format";
import { setQuery } from "./route";
import type { Location } from "./types";

export function At({ at, unknown = none }: { at: Location | null; unknown?: string }) {
  if (!at) return <span class="dim">{unknown}</span>;
  const where = position(at);
  return (
    <span class="at" title={at.file ? `${at.function}\n${at.file}:${at.line ?? "?"}` : at.function}>
      <span class="function">{shortName(at.function)}</span>
      {where && <span class="position"> {where}</span>}
    </span>
  );
}

export interface Column<T> {
  name: string;
  title: string;
  /** What it is, for those who stay on the title. */
  help?: string;
  cell: (row: T) => ComponentChildren;
  /** By what it sorts, the largest first; text the other way round. */
  value?: (row: T) => number | string | null;
  numeric?: boolean;
  /** Left out where there is little room. */
  wide?: boolean;
}

interface TableProps<T> {
  caption: string;
  columns: Column<T>[];
  rows: T[];
  keyOf: (row: T) => string;
  sort: string;
  selected?: string | null;
  onSelect?: (row: T) => void;
  empty: ComponentChildren;
  /** Whether it scrolls by itself, so that what is below stays in sight. */
  short?: boolean;
}

function compare(a: number | string | null, b: number | string | null): number {
  if (a == null || b == null) return (a == null ? 1 : 0) - (b == null ? 1 : 0);
  return typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b)) : b - a;
}

export function Table<T>({ caption, columns, rows, keyOf, sort, selected, onSelect, empty, short }: TableProps<T>) {
  const by = columns.find(({ name }) => name === sort);
  const value = by?.value;
  const down = by?.numeric || (rows[0] !== undefined && typeof value?.(rows[0]) === "number");
  const sorted = value ? [...rows].sort((a, b) => compare(value(a), value(b))) : rows;
  if (rows.length === 0) return <p class="empty">{empty}</p>;
  return (
    <div class={short ? "scroll short" : "scroll"} tabindex={0} role="region" aria-label={caption}>
      <table>
        <caption class="unseen">{caption}</caption>
        <thead>
          <tr>
            {columns.map((column) => (
              <th
                key={column.name}
                scope="col"
                class={style(column)}
                title={column.help}
                aria-sort={column === by ? (down ? "descending" : "ascending") : undefined}
              >
                {column.value ? (
                  <button type="button" class="sort" onClick={() => setQuery("sort", column.name)}>
                    {column.title}
                    {column === by && <span aria-hidden="true"> {down ? "▾" : "▴"}</span>}
                  </button>
                ) : (
                  column.title
                )}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {sorted.map((row) => {
            const key = keyOf(row);
            return (
              <tr key={key} class={onSelect ? (key === selected ? "choice selected" : "choice") : undefined} onClick={onSelect && (() => onSelect(row))}>
                {columns.map((column, n) => (
                  <td key={column.name} class={style(column)}>
                    {n === 0 && onSelect ? (
                      <button
                        type="button"
                        class="row"
                        aria-expanded={key === selected}
                        onClick={(event) => {
                          event.stopPropagation();
                          onSelect(row);
                        }}
                      >
                        {column.cell(row)}
                      </button>
                    ) : (
                      column.cell(row)
                    )}
                  </td>
                ))}
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

function style<T>({ numeric, wide }: Column<T>): string | undefined {
  return [numeric && "number", wide && "wide"].filter(Boolean).join(" ") || undefined;
}

/** A number over time, small. */
export function Spark({ values, label }: { values: (number | null)[]; label: string }) {
  const known = values.flatMap((value, n) => (value == null ? [] : [[n, value] as const]));
  if (known.length < 2) return <span class="dim">{none}</span>;
  const most = Math.max(...known.map(([, value]) => value), 1);
  const width = 90;
  const shift = width - values.length;
  const points = known.map(([n, value]) => `${n + shift},${(19 - (value / most) * 18).toFixed(1)}`).join(" ");
  return (
    <svg class="spark" viewBox={`0 0 ${width} 20`} preserveAspectRatio="none" role="img" aria-label={label}>
      <polyline points={points} />
    </svg>
  );
}

export interface Line {
  name: string;
  values: (number | null)[];
}

const CHART = { width: 600, height: 150, left: 4, bottom: 18, top: 16 };

/** Lines over time, with what they are where the pointer is. */
export function Chart({ title, lines, step_ns, end_unix_nano, shown = (n) => count(Math.round(n)) }: {
  title: string;
  lines: Line[];
  step_ns: number;
  end_unix_nano: number;
  shown?: (n: number) => string;
}) {
  const [at, setAt] = useState<number | null>(null);
  const length = Math.max(...lines.map(({ values }) => values.length), 2);
  const most = Math.max(...lines.flatMap(({ values }) => values.map((value) => value ?? 0))) || 1;
  const { width, height, left, bottom, top } = CHART;
  const x = (n: number) => left + (n / (length - 1)) * (width - 2 * left);
  const y = (value: number) => height - bottom - (value / most) * (height - bottom - top);
  const last = lines.map(({ values }) => values.findLast((value) => value != null) ?? null);
  const values = at == null ? last : lines.map(({ values }) => values[at] ?? null);
  const when = end_unix_nano - (length - 1 - (at ?? length - 1)) * step_ns;
  const clock = (unix_nano: number) => new Date(unix_nano / 1e6).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const text = lines.map(({ name }, n) => `${name} ${values[n] == null ? none : shown(values[n])}`).join(", ");
  return (
    <figure class="chart">
      <figcaption>
        {title}
        <span class="legend">
          {lines.map(({ name }, n) => (
            <span key={name}>
              <i class={`line${n}`} /> {name} <b>{values[n] == null ? none : shown(values[n]!)}</b>
            </span>
          ))}
          {at != null && <span class="dim">{clock(when)}</span>}
        </span>
      </figcaption>
      <svg
        viewBox={`0 0 ${width} ${height}`}
        role="img"
        aria-label={`${title}: ${text}`}
        onPointerMove={(event) => {
          const box = event.currentTarget.getBoundingClientRect();
          setAt(Math.min(length - 1, Math.max(0, Math.round(((event.clientX - box.left) / box.width) * (length - 1)))));
        }}
        onPointerLeave={() => setAt(null)}
      >
        {[0, 0.5, 1].map((share) => (
          <line key={share} class="grid" x1={left} x2={width - left} y1={y(most * share)} y2={y(most * share)} />
        ))}
        <text x={left} y={top - 4}>{shown(most)}</text>
        <text x={left} y={height - 4}>{clock(end_unix_nano - length * step_ns)}</text>
        <text x={width - left} y={height - 4} text-anchor="end">{clock(end_unix_nano)}</text>
        {lines.map(({ name, values }, n) => (
          <polyline
            key={name}
            class={`line${n}`}
            points={values.flatMap((value, n) => (value == null ? [] : [`${x(n).toFixed(1)},${y(value).toFixed(1)}`])).join(" ")}
          />
        ))}
        {at != null && <line class="cursor" x1={x(at)} x2={x(at)} y1={top} y2={height - bottom} />}
      </svg>
    </figure>
  );
}

/** A share as a bar. */
export function Bar({ share, label }: { share: number; label: string }) {
  return (
    <span class="bar">
      <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
        <rect class="track" width="100" height="10" />
        <rect class="fill" width={(Math.min(1, share) * 100).toFixed(2)} height="10" />
      </svg>
      <span>{label}</span>
    </span>
  );
}

export function Tile({ name, value, note, bad }: { name: string; value: ComponentChildren; note?: ComponentChildren; bad?: boolean }) {
  return (
    <div class={bad ? "tile bad" : "tile"}>
      <span class="name">{name}</span>
      <span class="value">{value}</span>
      {note && <span class="note">{note}</span>}
    </div>
  );
}

export function Copy({ text, name = "copy", what }: { text: () => string; name?: string; what: string }) {
  const [said, say] = useState("");
  useEffect(() => {
    if (!said) return;
    const timer = setTimeout(() => say(""), 2000);
    return () => clearTimeout(timer);
  }, [said]);
  return (
    <button
      type="button"
      class="small"
      aria-label={`${name} ${what}`}
      onClick={() => void copy(text()).then((done) => say(done ? "copied" : "cannot copy"))}
    >
      {said || name}
    </button>
  );
}

/** The clipboard is there for localhost and TLS only; elsewhere the selection is copied. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** The width that there is for what is drawn in an element. */
export function useWidth(least: number): [RefObject<HTMLDivElement | null>, number] {
  const outer = useRef<HTMLDivElement>(null);
  const [width, set] = useState(1000);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => entry && set(Math.max(least, entry.contentRect.width)));
    if (outer.current) watch.observe(outer.current);
    return () => watch.disconnect();
  }, [least]);
  return [outer, width];
}

/** What is sought, in the address. */
export function Filter({ value, what }: { value: string; what: string }) {
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const key = (event: KeyboardEvent) => {
      const within = event.target instanceof HTMLElement && event.target.closest("input, textarea, select");
      if (event.key === "/" && !within && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        input.current?.focus();
      }
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, []);
  return (
    <input
      ref={input}
      type="search"
      class="filter"
      value={value}
      placeholder={`filter ${what}   /`}
      aria-label={`filter ${what}`}
      onInput={(event) => setQuery("q", event.currentTarget.value)}
    />
  );
}

export function Check({ name, label, on }: { name: string; label: string; on: boolean }) {
  return (
    <label class="check">
      <input type="checkbox" checked={on} onChange={(event) => setQuery(name, event.currentTarget.checked ? "1" : "")} /> {label}
    </label>
  );
}

/** Whether any of the texts has what is sought. */
export function matches(wanted: string, ...texts: (string | null | undefined)[]): boolean {
  const lower = wanted.toLowerCase();
  return !lower || texts.some((text) => text?.toLowerCase().includes(lower));
}
