// Where requests spend their time, by route, and the slow ones one by one.
import { Filter, matches, Table, type Column } from "../components";
import { count, duration, percent, place, plural, rate, time } from "../format";
import { setQuery } from "../route";
import type { Route, SlowRequest, TimeSpent } from "../types";
import type { Seen } from "./process";
import { TimeLine } from "./timeline";

/** Slow requests of a process that are kept. */
const KEPT = 100;

interface Part {
  name: string;
  style: string;
  ns: number;
}

const PARTS: [name: string, style: string, shown: string][] = [
  ["on_cpu", "cpu", "on CPU"],
  ["run_queue", "queue", "run queue"],
  ["descheduled", "queue2", "descheduled"],
  ["throttled", "throttled", "throttled"],
  ["world_stopped", "gc", "world stopped"],
  ["gc_assist", "gc2", "GC assist"],
  ["syscall", "syscall", "system call"],
];

const BLOCKED: [reasons: RegExp, style: string][] = [
  [/^chan |^select/, "chan"],
  [/^sync\.|^semacquire/, "lock"],
  [/^IO wait/, "io"],
  [/^sleep/, "sleep"],
  [/./, "other"],
];

/** The colour of a wait. */
export function styleOf(reason: string): string {
  return BLOCKED.find(([reasons]) => reasons.test(reason))?.[1] ?? "other";
}

/** What time was spent on; parts with none are left out. */
export function parts(spent: TimeSpent): Part[] {
  const states = PARTS.map(([name, style, shown]) => ({ name: shown, style, ns: Number(spent[name] ?? 0) }));
  const blocked = Object.entries(spent.blocked).map(([name, ns]) => ({
    name,
    style: styleOf(name),
    ns,
  }));
  return [...states, ...blocked.sort((a, b) => b.ns - a.ns)].filter(({ ns }) => ns > 0);
}

export function Stacked({ spent }: { spent: TimeSpent }) {
  const all = parts(spent);
  const total = all.reduce((sum, { ns }) => sum + ns, 0) || 1;
  const text = all.map(({ name, ns }) => `${name} ${percent(ns / total)}`).join(", ");
  let x = 0;
  return (
    <svg class="stacked" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label={text || "no time"}>
      <title>{text}</title>
      {all.map(({ name, style, ns }) => {
        const at = x;
        x += (ns / total) * 100;
        return <rect key={name} class={`part ${style}`} x={at.toFixed(3)} width={((ns / total) * 100).toFixed(3)} height="10" />;
      })}
    </svg>
  );
}

function Legend() {
  const shown = [...PARTS.map(([, style, name]) => [style, name]), ["chan", "channel, select"], ["lock", "lock, WaitGroup, Cond"], ["io", "network"], ["sleep", "sleep"], ["other", "other waits"]];
  return (
    <p class="legend">
      {shown.map(([style, name]) => (
        <span key={name}>
          <svg viewBox="0 0 10 10" aria-hidden="true"><rect class={`part ${style}`} width="10" height="10" /></svg> {name}
        </span>
      ))}
    </p>
  );
}

function routeName({ method, route, handler, protocol }: Pick<Route, "method" | "route" | "handler" | "protocol">): string {
  const what = route ?? (handler ? place(handler) : "route not known");
  return [method ?? (protocol === "grpc" ? "gRPC" : null), what].filter(Boolean).join(" ");
}

export function RequestsView({ seen: { row, now }, query }: { seen: Seen; query: URLSearchParams }) {
  const { requests } = now;
  if (!requests) {
    return (
      <p class="empty">
        Requests are not traced here. Set <code>requests: {"{mode: slow}"}</code> and <code>trace.level: full</code> in gotrace's configuration, or look at
        once with <code>gotrace requests {now.pid}</code>.
      </p>
    );
  }
  const wanted = query.get("q") ?? "";
  const length = (now.end_unix_nano - now.start_unix_nano) * requests.coverage;
  const shown = requests.routes.filter((route) => (route.count > 0 || route.open > 0) && matches(wanted, routeName(route), route.protocol, route.handler?.function));
  const all = remember(`${now.pid} ${row.since_unix_nano}`, requests.slow, query.get("request"));
  const slow = all.filter((request) => matches(wanted, routeName(request), request.protocol));
  const spent = (route: Route) => parts(route.time_ns).reduce((sum, { ns }) => sum + ns, 0);
  const columns: Column<Route>[] = [
    { name: "route", title: "route", value: routeName, cell: (r) => <span title={r.handler ? r.handler.function : undefined}>{routeName(r)}</span> },
    { name: "rate", title: "requests/s", numeric: true, value: (r) => r.count, cell: (r) => rate(r.count, length) },
    { name: "errors", title: "errors", numeric: true, value: (r) => r.errors, cell: (r) => <span class={r.errors ? "bad" : undefined}>{count(r.errors)}</span> },
    { name: "open", title: "open", help: "now, with the age of the oldest", numeric: true, wide: true, value: (r) => r.open, cell: (r) => (r.open ? `${count(r.open)}, ${duration(r.oldest_open_ns)}` : "0") },
    { name: "p50", title: "p50", numeric: true, wide: true, value: (r) => r.duration_ns.p50, cell: (r) => duration(r.duration_ns.p50) },
    { name: "p99", title: "p99", numeric: true, value: (r) => r.duration_ns.p99, cell: (r) => duration(r.duration_ns.p99) },
    { name: "max", title: "max", numeric: true, wide: true, value: (r) => r.duration_ns.max, cell: (r) => duration(r.duration_ns.max) },
    { name: "time", title: "where their time went", value: spent, cell: (r) => <Stacked spent={r.time_ns} /> },
    { name: "protocol", title: "protocol", wide: true, value: (r) => r.protocol, cell: (r) => r.protocol },
  ];
  const chosen = query.get("request");
  const request = slow.find(({ id }) => String(id) === chosen);
  return (
    <section aria-labelledby="requests">
      <div class="head">
        <h2 id="requests">Requests <span class="dim">of the last {duration(now.end_unix_nano - now.start_unix_nano)}</span></h2>
        <Filter value={wanted} what="route" />
      </div>
      {requests.coverage < 1 && (
        <p class="note warn">
          Traced in turns to keep within the budget, for {percent(requests.coverage)} of the time: rates are of these turns.
        </p>
      )}
      <Legend />
      <Table caption="Routes" columns={columns} rows={shown} keyOf={(r) => `${r.protocol} ${routeName(r)} ${r.handler?.function}`} sort={query.get("sort") ?? "time"} empty={wanted ? "No route matches the filter." : "No requests in the last interval."} />
      <h2>Slow requests <span class="dim">seen since this page was opened, the last {count(KEPT)}</span></h2>
      <Table
        caption="Slow requests"
        short
        rows={slow}
        keyOf={({ id }) => String(id)}
        sort={query.get("sort") ?? "duration"}
        selected={chosen}
        onSelect={({ id }) => setQuery("request", String(id) === chosen ? "" : String(id))}
        empty={all.length ? "None matches the filter." : "None yet."}
        columns={[
          { name: "route", title: "request", value: routeName, cell: routeName },
          { name: "duration", title: "took", numeric: true, value: (r) => r.duration_ns, cell: (r) => `${duration(r.duration_ns)}${r.open ? ", open" : ""}` },
          { name: "status", title: "status", numeric: true, value: (r) => r.status, cell: (r) => r.status ?? "–" },
          { name: "start", title: "began", wide: true, value: (r) => r.start_unix_nano, cell: (r) => time(r.start_unix_nano) },
          { name: "time", title: "where its time went", cell: (r) => <Stacked spent={r.time_ns} /> },
        ]}
      />
      {requests.slow_left_out > 0 && <p class="dim">{plural(requests.slow_left_out, "slow request")} more in the last interval, which are counted only.</p>}
      {request && <Request request={request} />}
    </section>
  );
}

/** Of a process, those that this page has seen: a report has those of its interval only. */
const seen = new Map<string, Map<number, SlowRequest>>();

/** `open`: the one that is looked at stays. */
function remember(of: string, slow: SlowRequest[], open: string | null): SlowRequest[] {
  const known = seen.get(of) ?? new Map<number, SlowRequest>();
  seen.set(of, known);
  for (const request of slow) {
    // The last is the newest.
    known.delete(request.id);
    known.set(request.id, request);
  }
  const old = [...known.keys()].slice(0, Math.max(0, known.size - KEPT));
  for (const id of old) if (String(id) !== open) known.delete(id);
  return [...known.values()];
}

function Request({ request }: { request: SlowRequest }) {
  return (
    <section class="details" aria-label="details of the request">
      <h3>
        {routeName(request)}{" "}
        <span class="dim">
          {duration(request.duration_ns)}
          {request.open && " so far"}, goroutine {request.goid}, began {time(request.start_unix_nano)}
        </span>
      </h3>
      <Stacked spent={request.time_ns} />
      <ul class="spent">
        {parts(request.time_ns).map(({ name, style, ns }) => (
          <li key={name}>
            <svg viewBox="0 0 10 10" aria-hidden="true"><rect class={`part ${style}`} width="10" height="10" /></svg> {name} <b>{duration(ns)}</b>{" "}
            <span class="dim">{percent(ns / request.duration_ns)}</span>
          </li>
        ))}
      </ul>
      <TimeLine key={`${request.id} ${request.waits.length > 0}`} request={request} />
      {request.trace_id && <p class="dim">trace {request.trace_id}</p>}
    </section>
  );
}
