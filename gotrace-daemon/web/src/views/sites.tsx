// Which `go` statements goroutines come from, and what those cost.
import { At, Check, Filter, matches, Table, type Column } from "../components";
import { change, count, cpus, duration, perSecond, quantile, rate } from "../format";
import type { Site } from "../types";
import type { Seen } from "./process";

export function SitesView({ seen: { now }, query }: { seen: Seen; query: URLSearchParams }) {
  const wanted = query.get("q") ?? "";
  const system = query.get("runtime") === "1";
  const length = now.end_unix_nano - now.start_unix_nano;
  const shown = now.sites.filter(
    (site) => (system || !site.system) && matches(wanted, site.entry?.function, site.created_by?.function, site.created_by?.file, ...Object.keys(site.waiting)),
  );
  const columns: Column<Site>[] = [
    { name: "entry", title: "goroutines run", value: (s) => s.entry?.function ?? null, cell: (s) => <At at={s.entry} unknown="created before attaching" /> },
    { name: "by", title: "created by", value: (s) => s.created_by?.function ?? null, cell: (s) => <At at={s.created_by} unknown={s.entry?.function === "runtime.main" ? "the runtime" : "not known"} /> },
    { name: "alive", title: "alive", numeric: true, value: (s) => s.alive, cell: (s) => count(s.alive) },
    { name: "growth", title: "growth", numeric: true, value: (s) => s.born - s.died, cell: (s) => change(perSecond(s.born - s.died, length)) },
    { name: "created", title: "created/s", numeric: true, wide: true, value: (s) => s.born, cell: (s) => rate(s.born, length) },
    { name: "exited", title: "exited/s", numeric: true, wide: true, value: (s) => s.died, cell: (s) => rate(s.died, length) },
    {
      name: "cpu",
      title: "CPUs",
      help: "CPU time of its goroutines within the interval, as a number of CPUs",
      numeric: true,
      value: (s) => s.cpu_ns,
      cell: (s) => (
        <span title={s.throttled_ns ? `throttled for ${duration(s.throttled_ns)}` : undefined}>
          {s.cpu_ns == null ? "–" : cpus(s.cpu_ns, length)}
          {s.throttled_ns > 0 && <span class="bad"> throttled</span>}
        </span>
      ),
    },
    { name: "p99", title: "wait p99", numeric: true, wide: true, value: (s) => s.wait_ns.p99, cell: (s) => quantile(s.wait_ns.p99, s.wait_ns.p99_at_least) },
    { name: "life", title: "lifetime p50", numeric: true, wide: true, value: (s) => s.lifetime_ns.p50, cell: (s) => quantile(s.lifetime_ns.p50, s.lifetime_ns.p50_at_least) },
    { name: "oldest", title: "oldest", numeric: true, wide: true, value: (s) => s.oldest_ns, cell: (s) => (s.oldest_is_lower_bound && s.oldest_ns != null ? "≥ " : "") + duration(s.oldest_ns) },
    {
      name: "waiting",
      title: "waiting",
      wide: true,
      cell: (s) =>
        Object.entries(s.waiting)
          .sort((a, b) => b[1] - a[1])
          .slice(0, 3)
          .map(([reason, n]) => `${count(n)} ${reason}`)
          .join(", "),
    },
  ];
  const cpu = now.sites.reduce((sum, { cpu_ns }) => sum + (cpu_ns ?? 0), 0);
  const known = now.process_cpu_ns != null && now.sites.some(({ cpu_ns }) => cpu_ns != null);
  return (
    <section aria-labelledby="sites">
      <div class="head">
        <h2 id="sites">Creation sites</h2>
        <Filter value={wanted} what="function, file, reason" />
        <Check name="runtime" label="the runtime's own" on={system} />
      </div>
      {known && (
        <p class="note">
          {cpus(now.process_cpu_ns!, length)} CPUs in all, {cpus(Math.max(0, now.process_cpu_ns! - cpu), length)} of them outside of
          goroutines that were seen: scheduler, C threads, probes.
        </p>
      )}
      <Table
        caption="Table of creation sites"
        columns={columns}
        rows={shown}
        keyOf={(s) => `${s.entry?.function} ${s.created_by?.file}:${s.created_by?.line} ${s.created_by?.function}`}
        sort={query.get("sort") ?? "alive"}
        empty={wanted ? "No site matches the filter." : "No goroutines seen yet."}
      />
    </section>
  );
}
