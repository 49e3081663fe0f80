// All processes: what is wrong, and a row for each.
import { Filter, matches, Spark, Table, type Column } from "../components";
import { change, count, percent, perSecond, plural, processName, rate, shortName, sum } from "../format";
import type { Live } from "../live";
import { href } from "../route";
import type { Process } from "../types";
import { Problems } from "./problems";

export function growth({ born, died, interval_ns }: Process): number | null {
  return born == null || died == null ? null : perSecond(born - died, interval_ns);
}

export function Alive({ of }: { of: Process }) {
  return (
    <span title={of.alive_is_lower_bound ? "at least: not all are known" : undefined}>
      {of.alive_is_lower_bound && "≥ "}
      {count(of.alive)}
    </span>
  );
}

const LOWERED: Record<string, string> = {
  budget: "to keep within limits.budget",
  file: "probes would not be safe in its file",
  kernel: "the kernel has no descriptors or memory left for probes",
  memory: "because of limits.memory",
  room: "as many processes have probes as may (limits.processes)",
  neighbours: "other processes run the same file",
};

export function Level({ of }: { of: Process }) {
  const why = of.level_lowered_by;
  return (
    <span class={why ? "lowered" : undefined} title={why ? `${of.level_wanted} is wanted; lowered ${LOWERED[why] ?? why}` : undefined}>
      {of.level}
      {why && ` (${why})`}
    </span>
  );
}

export function Lost({ lost }: { lost: Record<string, number> | null }) {
  const all = sum(lost);
  const kinds = Object.entries(lost ?? {}).map(([kind, n]) => `${kind}: ${count(n)}`);
  return <span class={all ? "bad" : undefined} title={all ? kinds.join("\n") : undefined}>{lost ? count(all) : "–"}</span>;
}

export function Home({ live, query }: { live: Live; query: URLSearchParams }) {
  const wanted = query.get("q") ?? "";
  const rows = [...live.processes.values()].filter((row) =>
    matches(wanted, String(row.pid), row.service, row.executable, row.namespace, row.pod, row.container, row.go_version),
  );
  const pids = new Set(rows.map(({ pid }) => pid));
  const findings = live.findings.filter(
    (of) => pids.has(of.pid) || matches(wanted, of.entry?.function, of.waits_at?.function, of.created_by?.function),
  );
  const problems = (row: Process) => (row.leaks_proven ?? 0) * 1e6 + (row.leak_suspects ?? 0);
  const columns: Column<Process>[] = [
    {
      name: "name",
      title: "process",
      value: (row) => processName(row),
      cell: (row) => (
        <>
          <a href={href(row.pid)}>{processName(row)}</a> <span class="dim">{row.pid}</span>
        </>
      ),
    },
    { name: "alive", title: "goroutines", numeric: true, value: (row) => row.alive, cell: (row) => <Alive of={row} /> },
    {
      name: "history",
      title: "15 min",
      cell: (row) => {
        const values = live.history.get(row.pid)?.alive ?? [];
        return <Spark values={values} label={`goroutines in the last 15 minutes, now ${count(row.alive)}`} />;
      },
    },
    { name: "growth", title: "growth", help: "created less exited, in the last interval", numeric: true, value: growth, cell: (row) => change(growth(row)) },
    { name: "created", title: "created/s", numeric: true, wide: true, value: (row) => perSecond(row.born, row.interval_ns), cell: (row) => rate(row.born, row.interval_ns) },
    {
      name: "leaks",
      title: "leaked",
      help: "goroutines proven to be leaked, and suspected",
      numeric: true,
      value: problems,
      cell: (row) => (
        <span class={row.leaks_proven ? "bad" : row.leak_suspects ? "warn" : undefined}>
          {count(row.leaks_proven)}
          {row.leak_suspects ? ` + ${count(row.leak_suspects)}?` : ""}
        </span>
      ),
    },
    { name: "level", title: "level", wide: true, value: (row) => row.level, cell: (row) => <Level of={row} /> },
    { name: "overhead", title: "overhead", help: "estimated share of its CPU time that the probes take", numeric: true, wide: true, value: (row) => row.probe_cost_share, cell: (row) => percent(row.probe_cost_share) },
    { name: "lost", title: "lost", help: "events lost since attaching", numeric: true, wide: true, value: (row) => sum(row.lost), cell: (row) => <Lost lost={row.lost} /> },
    { name: "go", title: "Go", wide: true, value: (row) => row.go_version, cell: (row) => shortName(row.go_version ?? "–").replace(/^go/, "") },
  ];
  return (
    <>
      <h1 class="unseen">Go processes of this node</h1>
      <Problems
        findings={findings}
        leftOut={live.findingsLeftOut}
        of={plural(pids.size, "process", "processes")}
        named
        query={query}
      />
      <section aria-labelledby="processes">
        <div class="head">
          <h2 id="processes">Processes <span class="badge">{count(live.processes.size)}</span></h2>
          <Filter value={wanted} what="pod, process, function" />
        </div>
        <Table
          caption="Go processes"
          columns={columns}
          rows={rows}
          keyOf={(row) => `${row.pid} ${row.since_unix_nano}`}
          sort={query.get("sort") ?? "alive"}
          empty={live.processes.size ? "No process matches the filter." : "No Go process is traced: none runs, or no rule takes one."}
        />
      </section>
    </>
  );
}
