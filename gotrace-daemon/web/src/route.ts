// The address says what is seen: `#/p/123/places?q=net&sort=p99`. So it can be sent to somebody.
import { useEffect, useState } from "preact/hooks";

export const VIEWS = ["overview", "places", "sites", "locks", "requests", "flame", "capture"] as const;
export type View = (typeof VIEWS)[number];

export interface Route {
  /** Null: all processes. */
  pid: number | null;
  view: View;
  query: URLSearchParams;
}

export function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#/, "").split(/\?(.*)/s);
  const parts = path.split("/").filter(Boolean);
  const pid = parts[0] === "p" && /^\d{1,10}$/.test(parts[1] ?? "") ? Number(parts[1]) : null;
  const view = VIEWS.find((view) => view === parts[2]) ?? "overview";
  return { pid, view, query: new URLSearchParams(query) };
}

export function href(pid: number | null, view?: View, query?: Record<string, string>): string {
  const more = new URLSearchParams(query).toString();
  const path = pid == null ? "#/" : `#/p/${pid}/${view ?? "overview"}`;
  return more ? `${path}?${more}` : path;
}

/** Puts a value into the address, without a step in the browser's history; empty takes it out. */
export function setQuery(name: string, value: string): void {
  const { pid, view, query } = parse(location.hash);
  if (value) query.set(name, value);
  else query.delete(name);
  history.replaceState(null, "", href(pid, view, Object.fromEntries(query)));
  dispatchEvent(new HashChangeEvent("hashchange"));
}

export function useRoute(): Route {
  const [route, set] = useState(() => parse(location.hash));
  useEffect(() => {
    const changed = () => set(parse(location.hash));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}
