// How a process is: goroutines over time, what they wait for, what tracing it costs.
import { useEffect, useState } from "preact/hooks";

import { askJson } from "../api";
import { Chart, Table, Tile, type Column } from "../components";
import { count, cpus, duration, number, percent, quantile, rate, sum } from "../format";
import type { Durations, History } from "../types";
import type { Seen } from "./process";

interface Reason extends Partial<Durations> {
  name: string;
  now: number;
}

export function Overview({ seen: { row, now } }: { seen: Seen }) {
  const [history, setHistory] = useState<History | null>(null);
  useEffect(() => {
    const stop = new AbortController();
    askJson<History>(`api/v1/processes/${now.pid}/history`, stop.signal).then(setHistory, () => undefined);
    return () => stop.abort();
  }, [now.pid, now.end_unix_nano]);
  const length = now.end_unix_nano - now.start_unix_nano;
  const names = new Set([...Object.keys(now.waits), ...Object.keys(now.waiting)]);
  const reasons: Reason[] = [...names].map((name) => ({ ...now.waits[name], name, now: now.waiting[name] ?? 0 }));
  const lost = sum(now.lost);
  const seconds = (history?.step_ns ?? 10e9) / 1e9;
  const perSecond = (values: (number | null)[] | undefined) => (values ?? []).map((n) => (n == null ? null : n / seconds));
  const columns: Column<Reason>[] = [
    { name: "reason", title: "wait reason", value: (r) => r.name, cell: (r) => r.name },
    { name: "now", title: "now", help: "goroutines that wait so at the end of the interval", numeric: true, value: (r) => r.now, cell: (r) => count(r.now) },
    { name: "count", title: "waits", help: "since attaching, short ones too", numeric: true, value: (r) => r.count ?? null, cell: (r) => count(r.count) },
    { name: "total", title: "total", numeric: true, value: (r) => r.sum ?? null, cell: (r) => duration(r.sum) },
    { name: "p50", title: "p50", numeric: true, wide: true, value: (r) => r.p50 ?? null, cell: (r) => quantile(r.p50 ?? null, r.p50_at_least) },
    { name: "p99", title: "p99", numeric: true, value: (r) => r.p99 ?? null, cell: (r) => quantile(r.p99 ?? null, r.p99_at_least) },
    { name: "max", title: "max", numeric: true, wide: true, value: (r) => r.max ?? null, cell: (r) => duration(r.max) },
  ];
  const gc = now.gc;
  return (
    <>
      <div class="tiles">
        <Tile name="goroutines" value={`${now.alive_is_lower_bound ? "≥ " : ""}${count(now.alive)}`} />
        <Tile name="created" value={`${rate(now.born, length)}/s`} />
        <Tile name="exited" value={`${rate(now.died, length)}/s`} />
        <Tile name="CPU" value={now.process_cpu_ns == null ? "–" : `${cpus(now.process_cpu_ns, length)} CPUs`} />
        <Tile
          name="scheduling latency p99"
          value={now.schedule_delay_ns.count ? quantile(now.schedule_delay_ns.p99, now.schedule_delay_ns.p99_at_least) : "–"}
          note={now.schedule_delay_ns.count ? "runnable to running" : "from level full on"}
        />
        <Tile name="GC pauses" value={gc.pause_ns.count ? duration(gc.pause_ns.max) : "–"} note={gc.pause_ns.count ? `longest of ${count(gc.pause_ns.count)}, total ${duration(gc.pause_ns.sum)}` : "none seen"} />
        <Tile name="overhead" value={percent(now.probe_cost_share)} note={now.budget == null ? undefined : `budget ${percent(now.budget)} of its CPU`} />
        <Tile name="events lost" value={count(lost)} bad={lost > 0} note={lost ? Object.entries(now.lost).map(([kind, n]) => `${kind} ${count(n)}`).join(", ") : undefined} />
      </div>
      {now.incomplete.length > 0 && (
        <p class="note warn">
          Incomplete, as the level was lower than {now.level_wanted} for a part of the time: {now.incomplete.join(", ")}.
        </p>
      )}
      {row.engine === "snapshot" && (
        <p class="note">Traced by snapshots, without probes: goroutines that start and finish between two of them are not seen, and waits are not timed.</p>
      )}
      {history && (
        <div class="charts">
          <Chart title="Goroutines" lines={[{ name: "alive", values: history.alive }]} {...history} />
          <Chart
            title="Per second"
            lines={[
              { name: "created", values: perSecond(history.created) },
              { name: "exited", values: perSecond(history.exited) },
            ]}
            {...history}
            shown={number}
          />
        </div>
      )}
      <h2>What goroutines wait for</h2>
      <Table
        caption="Waits by reason"
        columns={columns}
        rows={reasons}
        keyOf={(r) => r.name}
        sort={new URLSearchParams(location.hash.split("?")[1]).get("sort") ?? "now"}
        empty={now.level === "lifecycle" ? "Not known: waits are traced from level waits on." : "No waits seen yet."}
      />
    </>
  );
}
