// When a slow request waited: each of its waits at its time, as a picture and as a table.
import { useState } from "preact/hooks";

import { At, Table, useWidth, type Column } from "../components";
import { duration, percent, place, position, shortName } from "../format";
import type { RequestWait, SlowRequest } from "../types";
import { Stack } from "./places";
import { styleOf } from "./requests";

const ROW = 32;
const BAR = 12;
/** The whole request above its waits, and the times below. */
const TOP = 24;
const BOTTOM = 20;
/** Of a character, in pixels. */
const CHARACTER = 6.9;

/** What ended a wait, in words. */
export function cause({ causes, ended_by }: RequestWait): string | null {
  const [first] = causes;
  if (first) {
    const where = first.frame ? place(first.frame) : first.function ? shortName(first.function) : null;
    return `goroutine ${first.goid}: ${first.state} ${duration(first.duration_ns)}${where ? ` in ${where}` : ""}`;
  }
  if (ended_by.goid != null) return `goroutine ${ended_by.goid}`;
  return ended_by.kind === "unknown" ? null : ended_by.kind;
}

/** `select 60 ms main.load app.go:12 for 10.0.3.7:5432 ← goroutine 9: IO wait 58 ms in main.flush` */
export function label(wait: RequestWait): string {
  const at = wait.own_code ?? wait.site;
  const where = at && `${shortName(at.function)} ${position(at) ?? ""}`.trim();
  const by = cause(wait);
  return [wait.reason, duration(wait.duration_ns), where, wait.peer && `for ${wait.peer}`, by && `← ${by}`].filter(Boolean).join(" ");
}

export function TimeLine({ request }: { request: SlowRequest }) {
  const [outer, width] = useWidth(300);
  const [chosen, choose] = useState(0);
  const waits = [...request.waits].sort((a, b) => a.offset_ns - b.offset_ns);
  const whole = request.duration_ns || 1;
  if (waits.length === 0) {
    return <p class="dim">{request.waits_complete ? "It has no waits that are long enough to be told one by one." : "Its waits are missing."}</p>;
  }
  const x = (ns: number) => (Math.min(Math.max(ns, 0), whole) / whole) * width;
  const bar = (wait: RequestWait) => ({ x: x(wait.offset_ns), width: Math.max(1.5, x(wait.offset_ns + wait.duration_ns) - x(wait.offset_ns)) });
  const height = TOP + waits.length * ROW + BOTTOM;
  const at = waits[Math.min(chosen, waits.length - 1)]!;
  const go = (event: KeyboardEvent) => {
    const step = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
    const next = event.key === "Home" ? 0 : event.key === "End" ? waits.length - 1 : step ? chosen + step : null;
    if (next == null) return;
    choose(Math.min(waits.length - 1, Math.max(0, next)));
    event.preventDefault();
  };
  const ticks = width < 500 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
  const columns: Column<RequestWait>[] = [
    { name: "at", title: "at", help: "since the request began", numeric: true, cell: (w) => duration(w.offset_ns) },
    { name: "took", title: "took", numeric: true, cell: (w) => duration(w.duration_ns) },
    { name: "share", title: "share", numeric: true, wide: true, cell: (w) => percent(w.duration_ns / whole) },
    { name: "reason", title: "reason", cell: (w) => w.reason },
    { name: "where", title: "where", cell: (w) => <At at={w.own_code ?? w.site} unknown="not known" /> },
    { name: "peer", title: "peer", wide: true, cell: (w) => w.peer ?? "" },
    { name: "by", title: "ended by", cell: (w) => <Causes wait={w} /> },
  ];
  return (
    <>
      <h4>Its waits on a time line</h4>
      <div class="timeline" ref={outer}>
        <svg
          width={width}
          height={height}
          tabindex={0}
          role="application"
          aria-label={`time line of ${waits.length} waits within ${duration(request.duration_ns)}; arrows choose one, the table below has all`}
          onKeyDown={go}
        >
          <rect class="track" width={width} height={BAR} />
          {waits.map((wait) => (
            <rect key={wait.offset_ns} class={`part ${styleOf(wait.reason)}`} height={BAR} {...bar(wait)} />
          ))}
          {ticks.map((share) => (
            <g key={share}>
              <line class="grid" x1={share * width} x2={share * width} y1={0} y2={height - BOTTOM} />
              <text class="tick" x={share * width} y={height - 5} text-anchor={share === 0 ? "start" : share === 1 ? "end" : "middle"}>
                {share ? duration(Math.round(share * request.duration_ns)) : "0"}
              </text>
            </g>
          ))}
          {waits.map((wait, n) => {
            const { x, width: w } = bar(wait);
            const y = TOP + n * ROW;
            const text = cut(label(wait), width);
            const long = text.length * CHARACTER;
            return (
              <g key={wait.offset_ns} class={wait === at ? "wait at" : "wait"} onClick={() => choose(n)}>
                <title>{label(wait)}</title>
                <rect class="row" y={y - 1} width={width} height={ROW} />
                <text x={Math.max(0, Math.min(x, width - long))} y={y + 12}>{text}</text>
                <rect class={`part ${styleOf(wait.reason)}`} x={x} y={y + 16} width={w} height={BAR} />
              </g>
            );
          })}
        </svg>
      </div>
      <p class="dim">
        The bar on top is the whole request; between the waits it ran, was queued, or waited too shortly for each to be told.
        {!request.waits_complete && <strong> Some of its waits are missing.</strong>}
      </p>
      <div class="chosen" aria-live="polite">
        <p>
          At {duration(at.offset_ns)}: {label(at)}
        </p>
        {at.stack.length > 0 && (
          <details>
            <summary>stack of this wait</summary>
            <Stack stack={at.stack} complete />
          </details>
        )}
      </div>
      <Table caption="Waits of the request" columns={columns} rows={waits} keyOf={(w) => String(w.offset_ns)} sort="" empty="" />
    </>
  );
}

function cut(text: string, width: number): string {
  const room = Math.floor(width / CHARACTER);
  return text.length > room ? `${text.slice(0, Math.max(1, room - 1))}…` : text;
}

function Causes({ wait }: { wait: RequestWait }) {
  if (wait.causes.length === 0) return <>{cause(wait) ?? <span class="dim">not known</span>}</>;
  return (
    <ul class="causes">
      {wait.causes.map((of, n) => (
        <li key={n}>
          goroutine {of.goid}: {of.state} {duration(of.duration_ns)} in <At at={of.frame} unknown={of.function ? shortName(of.function) : "a place that is not known"} />
        </li>
      ))}
    </ul>
  );
}
