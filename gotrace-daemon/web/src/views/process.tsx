// One process: its problems, and the views of it. Its last report is asked for when a new one is told of.
import { useEffect, useRef, useState } from "preact/hooks";

import { askJson } from "../api";
import { change, duration, percent, processName } from "../format";
import type { Live } from "../live";
import { href, VIEWS, type View } from "../route";
import type { Interval, Process } from "../types";
import { CaptureView } from "./capture";
import { FlameView } from "./flame";
import { Alive, growth, Level, Lost } from "./home";
import { LocksView } from "./locks";
import { Overview } from "./overview";
import { PlacesView } from "./places";
import { Problems } from "./problems";
import { RequestsView } from "./requests";
import { SitesView } from "./sites";

const NAMES: Record<View, string> = {
  overview: "Overview",
  places: "Places",
  sites: "Created by",
  locks: "Locks & channels",
  requests: "Requests",
  flame: "Flame graph",
  capture: "Capture",
};

export interface Seen {
  row: Process;
  now: Interval;
  /** The report before, where it was seen. */
  before: Interval | null;
}

interface Props {
  live: Live;
  pid: number;
  view: View;
  query: URLSearchParams;
}

export function ProcessView({ live, pid, view, query }: Props) {
  const row = live.processes.get(pid);
  const [reports, setReports] = useState<{ now: Interval; before: Interval | null } | null>(null);
  const [error, setError] = useState("");
  // What is seen stays when the process has ended.
  const last = useRef<Process | null>(null);
  if (row) last.current = row;
  const reported = row?.reported_unix_nano;
  const since = row?.since_unix_nano;
  useEffect(() => {
    if (reported == null) return;
    const stop = new AbortController();
    askJson<{ interval: Interval }>(`api/v1/processes/${pid}`, stop.signal).then(
      ({ interval }) => {
        setError("");
        setReports((old) => {
          const same = old && old.now.end_unix_nano !== interval.end_unix_nano && old.now.end_unix_nano >= (since ?? 0);
          return { now: interval, before: same ? old.now : (old?.before ?? null) };
        });
      },
      (error: Error) => stop.signal.aborted || setError(error.message),
    );
    return () => stop.abort();
  }, [pid, reported, since]);
  const shown = row ?? last.current;
  if (!shown) {
    return (
      <p class="empty">
        Process {pid} is not traced: it is no Go program, no rule takes it, or it has ended. <a href="#/">All processes</a>
      </p>
    );
  }
  const findings = live.findings.filter((finding) => finding.pid === pid);
  return (
    <>
      <div class="process">
        <a class="back" href="#/">← all processes</a>
        <h1>
          {processName(shown)} <span class="dim">pid {pid}</span>
        </h1>
        <p class="facts">
          {!row && <strong class="bad">ended</strong>}
          <span><Alive of={shown} /> goroutines</span>
          <span>growth {change(growth(shown))}</span>
          <span>{shown.go_version}</span>
          <span>level <Level of={shown} /></span>
          <span>overhead {percent(shown.probe_cost_share)} CPU</span>
          <span><Lost lost={shown.lost} /> lost</span>
          <span>traced for {duration(Math.max(0, Date.now() * 1e6 - shown.since_unix_nano))}</span>
        </p>
      </div>
      {findings.length > 0 && <Problems findings={findings} leftOut={0} of="this process" named={false} query={query} />}
      <nav class="tabs" aria-label="views of this process">
        {VIEWS.map((name) => (
          <a key={name} href={href(pid, name)} aria-current={name === view ? "page" : undefined}>
            {NAMES[name]}
          </a>
        ))}
      </nav>
      {error && <p class="note bad" role="alert">{error}</p>}
      {view === "capture" ? (
        <CaptureView row={shown} />
      ) : view === "flame" ? (
        <FlameView pid={pid} since={shown.since_unix_nano} query={query} paused={live.connection === "paused"} />
      ) : view === "locks" ? (
        <LocksView pid={pid} query={query} />
      ) : reports ? (
        <Report seen={{ row: shown, ...reports }} view={view} query={query} live={live} />
      ) : (
        !error && <p class="empty" role="status">The first report comes within trace.interval.</p>
      )}
    </>
  );
}

function Report({ seen, view, query, live }: { seen: Seen; view: View; query: URLSearchParams; live: Live }) {
  if (view === "places") return <PlacesView seen={seen} query={query} still={live.connection === "paused"} />;
  if (view === "sites") return <SitesView seen={seen} query={query} />;
  if (view === "requests") return <RequestsView seen={seen} query={query} />;
  return <Overview seen={seen} />;
}
