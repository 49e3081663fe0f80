// The frame of all views: what gotrace is connected to, problems first, then what the address says.
import { useEffect, useState } from "preact/hooks";

import { useLive, type Live } from "../live";
import { useRoute } from "../route";
import { Home } from "./home";
import { Login } from "./login";
import { ProcessView } from "./process";

export function App() {
  const route = useRoute();
  const live = useLive();
  useEffect(() => {
    const row = route.pid == null ? null : live.processes.get(route.pid);
    document.title = row ? `${row.service ?? row.pid} – gotrace` : "gotrace";
  });
  return (
    <>
      <header class="top">
        <a class="brand" href="#/">gotrace</a>
        <span class="dim">{location.host}</span>
        <Status live={live} />
      </header>
      <main>
        {live.login ? (
          <Login done={() => live.connect()} />
        ) : !live.known ? (
          <p class="empty" role="status">{live.error || "asking gotrace…"}</p>
        ) : route.pid == null ? (
          <Home live={live} query={route.query} />
        ) : (
          <ProcessView key={route.pid} live={live} pid={route.pid} view={route.view} query={route.query} />
        )}
      </main>
    </>
  );
}

function Status({ live }: { live: Live }) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  if (live.login) return null;
  const paused = live.connection === "paused";
  const ago = live.heard ? Math.max(0, Math.round((now - live.heard) / 1000)) : null;
  const recorded = live.processes.size > 0 && [...live.processes.values()].every((process) => process.recorded);
  if (recorded) return <div class="status"><span class="state" role="status">recording, as of its end</span></div>;
  const text = { connecting: "connecting", live: "live", polling: "asking every 5 s", paused: "paused", lost: "not connected" }[live.connection];
  return (
    <div class="status">
      <span class={`state ${live.connection}`} title={live.error || undefined} role="status">{text}</span>
      {ago != null && ago > 2 && <span class="dim">last news {ago} s ago</span>}
      <button type="button" aria-pressed={paused} onClick={() => (paused ? live.resume() : live.pause())}>
        {paused ? "resume" : "pause"}
      </button>
    </div>
  );
}
