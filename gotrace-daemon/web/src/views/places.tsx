// Where goroutines wait in the program's own code: those of now, by a snapshot, beside how long others waited there.
import { useEffect, useState } from "preact/hooks";

import { askLines } from "../api";
import { At, Bar, Check, Filter, matches, Table, type Column } from "../components";
import { count, duration, percent, place, plural, quantile, rate, time } from "../format";
import { setQuery } from "../route";
import type { Group, Interval, Location, WaitPlace } from "../types";
import type { Seen } from "./process";

/** Groups of a snapshot that are shown. */
const GROUPS = 2000;
/** With more goroutines a snapshot is taken when it is asked for only. */
const MANY = 20_000;
const AGAIN_MS = 15_000;

interface Snapshot {
  time_unix_nano: number;
  groups: Group[];
  /** Goroutines without a group, as there are too many groups. */
  leftOut: number;
}

export interface Row {
  key: string;
  reason: string;
  at: Location | null;
  waits: WaitPlace | null;
  /** Waits that ended within the last interval, where the one before was seen. */
  recent: number | null;
  groups: Group[];
  now: number | null;
}

function key(reason: string, at: Location | null): string {
  return `${reason} ${at?.function} ${at?.file}:${at?.line}`;
}

/** Whether own code is further out than the stack goes. */
function isCut({ own, stack_complete, system }: WaitPlace): boolean {
  return !own && !stack_complete && !system;
}

/** Waits that have ended, and goroutines that wait now, by reason and place. */
export function rows(now: Interval, before: Interval | null, snapshot: Snapshot | null): Row[] {
  const counted = new Map(before?.waits_at.map((of) => [`${key(of.reason, of.frame)} ${of.peer}`, of.count]));
  const byPlace = new Map<string, Group[]>();
  for (const group of snapshot?.groups ?? []) {
    if (group.wait_reason == null && group.state !== "syscall") continue;
    const at = key(group.wait_reason ?? group.state, group.own_code);
    byPlace.set(at, [...(byPlace.get(at) ?? []), group]);
  }
  const all: Row[] = [];
  for (const waits of now.waits_at) {
    const at = key(waits.reason, waits.frame);
    const whole = `${at} ${waits.peer}`;
    // Of a snapshot the peer is not known: the first row of a place has its goroutines.
    const groups = byPlace.get(at) ?? [];
    byPlace.delete(at);
    const recent = before ? waits.count - (counted.get(whole) ?? 0) : null;
    all.push({ key: whole, reason: waits.reason, at: waits.frame, waits, recent, groups, now: null });
  }
  for (const [at, groups] of byPlace) {
    const first = groups[0]!;
    all.push({ key: `${at} null`, reason: first.wait_reason ?? first.state, at: first.own_code, waits: null, recent: null, groups, now: null });
  }
  for (const row of all) {
    // A snapshot sees own code further out than the stack of the wait goes: its goroutines are in a row of their own.
    const elsewhere = row.groups.length === 0 && row.waits != null && isCut(row.waits);
    row.now = snapshot && !elsewhere ? row.groups.reduce((sum, { count }) => sum + count, 0) : null;
  }
  return all;
}

export function PlacesView({ seen: { row, now, before }, query, still }: { seen: Seen; query: URLSearchParams; still: boolean }) {
  const [snapshot, setSnapshot] = useState<Snapshot | null>(null);
  const [said, say] = useState("");
  const [asked, ask] = useState(0);
  const many = (row.alive ?? 0) > MANY;
  useEffect(() => {
    const stop = new AbortController();
    take(row.pid, stop.signal).then(
      (taken) => {
        setSnapshot(taken);
        say("");
      },
      (error: Error) => stop.signal.aborted || say(`cannot read its goroutines: ${error.message}`),
    );
    const again = still || many ? 0 : setTimeout(() => document.hidden || ask(asked + 1), AGAIN_MS);
    return () => {
      stop.abort();
      clearTimeout(again);
    };
  }, [row.pid, asked, still, many]);

  const wanted = query.get("q") ?? "";
  const system = query.get("runtime") === "1";
  const all = rows(now, before, snapshot);
  const shown = all.filter(
    ({ waits, reason, at }) => (system || !waits?.system) && matches(wanted, reason, at?.function, at?.file, waits?.peer),
  );
  const total = now.waits_at.reduce((sum, of) => sum + (system || !of.system ? of.total_ns : 0), now.waits_at_others.sum) || 1;
  const length = before ? now.end_unix_nano - before.end_unix_nano : null;
  const selected = query.get("at");
  const columns: Column<Row>[] = [
    { name: "at", title: "waiting at (own code)", value: (r) => r.at?.function ?? null, cell: (r) => <At at={r.at} unknown="not known" /> },
    { name: "reason", title: "reason", value: (r) => r.reason, cell: (r) => r.reason },
    { name: "peer", title: "peer", wide: true, help: "the other end of a connection that the process opened", value: (r) => r.waits?.peer ?? null, cell: (r) => r.waits?.peer ?? "" },
    { name: "now", title: "now", help: "goroutines that wait there, by a snapshot", numeric: true, value: (r) => r.now, cell: (r) => count(r.now) },
    { name: "rate", title: "waits/s", numeric: true, wide: true, value: (r) => r.recent, cell: (r) => rate(r.recent, length) },
    { name: "p50", title: "p50", numeric: true, wide: true, value: (r) => r.waits?.p50 ?? null, cell: (r) => quantile(r.waits?.p50 ?? null, r.waits?.p50_at_least) },
    { name: "p99", title: "p99", numeric: true, value: (r) => r.waits?.p99 ?? null, cell: (r) => quantile(r.waits?.p99 ?? null, r.waits?.p99_at_least) },
    { name: "max", title: "max", numeric: true, wide: true, value: (r) => r.waits?.max ?? null, cell: (r) => duration(r.waits?.max) },
    {
      name: "total",
      title: "share of wait time",
      help: "of the time that waits took which have ended",
      numeric: true,
      value: (r) => r.waits?.total_ns ?? null,
      cell: (r) => (r.waits ? <Bar share={r.waits.total_ns / total} label={percent(r.waits.total_ns / total)} /> : "–"),
    },
  ];
  const chosen = shown.find((row) => row.key === selected);
  return (
    <section aria-labelledby="places">
      <div class="head">
        <h2 id="places">Where goroutines wait</h2>
        <Filter value={wanted} what="function, reason, peer" />
        <Check name="runtime" label="the runtime's own" on={system} />
      </div>
      <p class="note">
        Waits of at least {duration(now.min_wait_ns)} that have ended since attaching;{" "}
        {snapshot ? `“now” is a snapshot of ${time(snapshot.time_unix_nano)}` : said || "reading its goroutines…"}{" "}
        <button type="button" class="small" onClick={() => ask(asked + 1)}>read goroutines again</button>
        {snapshot && said && <strong class="bad"> {said}</strong>}
        {snapshot && snapshot.leftOut > 0 && <strong> {plural(snapshot.leftOut, "goroutine")} in smaller groups not counted</strong>}
      </p>
      {shown.some(({ waits }) => waits != null && isCut(waits)) && (
        <p class="dim">Where a function of a library stands, own code is further out than the stacks of waits go (trace.stack_depth).</p>
      )}
      <Table
        caption="Places of waits"
        columns={columns}
        rows={shown}
        keyOf={(row) => row.key}
        sort={query.get("sort") ?? "now"}
        selected={selected}
        onSelect={(row) => setQuery("at", row.key === selected ? "" : row.key)}
        empty={wanted ? "No place matches the filter." : "No waits seen yet."}
      />
      {chosen && <Details row={chosen} />}
    </section>
  );
}

async function take(pid: number, signal: AbortSignal): Promise<Snapshot> {
  const lines = await askLines(`api/v1/processes/${pid}/goroutines`, signal);
  const groups = lines.flatMap((line) => (line.group ? [line.group as Group] : []));
  const leftOut = groups.slice(GROUPS).reduce((sum, { count }) => sum + count, 0);
  return { time_unix_nano: (lines[0]?.time_unix_nano as number | undefined) ?? 0, groups: groups.slice(0, GROUPS), leftOut };
}

function Details({ row: { at, reason, waits, groups, now } }: { row: Row }) {
  return (
    <section class="details" aria-label="details of the place">
      <h3><At at={at} unknown="place not known" /> <span class="dim">{reason}</span></h3>
      {waits && (
        <>
          <p>
            {plural(waits.count, "wait")}, {duration(waits.total_ns)} in all, the longest {duration(waits.max)}
            {waits.peer && <> for {waits.peer}</>}. Its stack:
          </p>
          <Stack stack={waits.stack} complete={waits.stack_complete} />
        </>
      )}
      {now != null && now > 0 && <p>{plural(now, "goroutine")} there now:</p>}
      {groups.slice(0, 20).map((group) => (
        <details key={`${group.first_goid}`} open={groups.length < 3}>
          <summary>
            {count(group.count)} × <At at={group.entry} /> <span class="dim">created by {place(group.created_by)}</span>
          </summary>
          <p class="dim">
            {group.count === 1 ? `goroutine ${group.first_goid}` : `goroutines ${group.first_goid} to ${group.last_goid}, and others between`}
          </p>
          <Stack stack={group.stack} complete={group.stack_complete} />
        </details>
      ))}
      {groups.length > 20 && <p class="dim">and {plural(groups.length - 20, "more group")}</p>}
    </section>
  );
}

export function Stack({ stack, complete }: { stack: Location[]; complete: boolean }) {
  return (
    <ol class="stack">
      {stack.map((frame, n) => (
        <li key={n}>
          <span class="function">{frame.function}</span> <span class="position">{frame.file}:{frame.line ?? "?"}</span>
        </li>
      ))}
      {!complete && <li class="dim">… what is further out is not known</li>}
    </ol>
  );
}
