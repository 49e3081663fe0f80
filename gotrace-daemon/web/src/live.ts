// What is known of all processes, kept up to date by events, or by asking where there are none.
import { useEffect, useReducer } from "preact/hooks";

import { ApiError, askJson } from "./api";
import type { Finding, History, Process } from "./types";

export type Connection = "connecting" | "live" | "polling" | "paused" | "lost";

interface Processes {
  processes: Process[];
}

/** How often is asked where events are not to be had, and how long after a failure. */
const POLL_MS = 5_000;
/** Findings are asked for this long after a report, so once for reports that come together. */
const FINDINGS_MS = 300;

export class Live {
  processes = new Map<number, Process>();
  findings: Finding[] = [];
  findingsLeftOut = 0;
  history = new Map<number, History>();
  connection: Connection = "connecting";
  /** Whether the token is asked for. */
  login = false;
  /** Why it is lost. */
  error = "";
  /** When something was heard last. */
  heard = 0;
  /** Whether anything was ever. */
  known = false;

  private listeners = new Set<() => void>();
  private source: EventSource | null = null;
  private timer = 0;
  /** How often it was connected or not. */
  private turn = 0;
  private findingsTimer = 0;

  start(): void {
    document.addEventListener("visibilitychange", () => {
      // Who does not look needs no news.
      if (this.connection === "paused") return;
      if (document.hidden) this.close();
      else this.connect();
    });
    this.connect();
  }

  pause(): void {
    this.close();
    this.set({ connection: "paused" });
  }

  resume(): void {
    this.connect();
  }

  connect(): void {
    this.close();
    this.set({ connection: "connecting", login: false });
    void this.first(this.turn);
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  private close(): void {
    // What was begun before comes to nothing.
    this.turn += 1;
    this.source?.close();
    this.source = null;
    clearTimeout(this.timer);
  }

  private set(change: Partial<Pick<Live, "connection" | "login" | "error">>): void {
    Object.assign(this, change);
    this.changed();
  }

  private changed(): void {
    this.listeners.forEach((listener) => listener());
  }

  /** Histories first, which are told once; then events. */
  private async first(turn: number): Promise<void> {
    try {
      const { processes } = await askJson<{ processes: History[] }>("api/v1/history");
      if (turn !== this.turn) return;
      this.history = new Map(processes.map((one) => [one.pid, one]));
      this.listen();
    } catch (error) {
      if (turn === this.turn) this.failed(error);
    }
  }

  private listen(): void {
    const source = new EventSource("api/v1/events");
    this.source = source;
    const on = <T>(name: string, take: (data: T) => void) =>
      source.addEventListener(name, (event) => {
        if (this.source !== source) return;
        take(JSON.parse((event as MessageEvent<string>).data) as T);
        this.heardNow("live");
      });
    on<Processes>("processes", (list) => this.all(list));
    on<Process>("process", (one) => this.one(one));
    on<{ pid: number; since_unix_nano: number }>("ended", ({ pid, since_unix_nano }) => {
      if (this.processes.get(pid)?.since_unix_nano === since_unix_nano) this.processes.delete(pid);
      this.askFindings();
    });
    source.onerror = () => {
      if (this.source !== source) return;
      // The browser connects again by itself, unless the answer was no stream.
      if (source.readyState === EventSource.CLOSED) {
        this.source = null;
        void this.poll(this.turn);
      } else this.set({ connection: "lost", error: "the connection is lost: trying again" });
    };
  }

  private async poll(turn: number): Promise<void> {
    try {
      const list = await askJson<Processes>("api/v1/processes");
      if (turn !== this.turn) return;
      this.all(list);
      this.heardNow("polling");
      this.timer = window.setTimeout(() => void this.poll(turn), POLL_MS);
    } catch (error) {
      if (turn === this.turn) this.failed(error);
    }
  }

  private failed(error: unknown): void {
    if (error instanceof ApiError && error.status === 401) {
      this.set({ login: true });
      return;
    }
    const why = error instanceof Error ? error.message : String(error);
    this.set({ connection: "lost", error: `${why}: trying again` });
    this.timer = window.setTimeout(() => this.connect(), POLL_MS);
  }

  private heardNow(connection: Connection): void {
    this.heard = Date.now();
    this.known = true;
    this.set({ connection, error: "", login: false });
  }

  private all({ processes }: Processes): void {
    this.processes = new Map(processes.map((one) => [one.pid, one]));
    processes.forEach((one) => this.remember(one));
    this.askFindings();
  }

  private one(process: Process): void {
    this.processes.set(process.pid, process);
    this.remember(process);
    this.askFindings();
  }

  private askFindings(): void {
    if (this.findingsTimer) return;
    this.findingsTimer = window.setTimeout(() => {
      this.findingsTimer = 0;
      void askJson<{ findings: Finding[]; findings_left_out: number }>("api/v1/findings").then((told) => {
        this.findings = told.findings;
        this.findingsLeftOut = told.findings_left_out;
        this.changed();
      }, () => undefined);
    }, FINDINGS_MS);
  }

  /** Goes on with a history as the daemon does. */
  private remember(process: Process): void {
    const { pid, since_unix_nano, reported_unix_nano, alive } = process;
    if (reported_unix_nano == null || alive == null) return;
    let history = this.history.get(pid);
    if (!history || history.since_unix_nano !== since_unix_nano) {
      const step_ns = 10e9;
      const end_unix_nano = (Math.floor(reported_unix_nano / step_ns) + 1) * step_ns;
      history = { pid, since_unix_nano, step_ns, end_unix_nano, alive: [alive] };
      this.history.set(pid, history);
      return;
    }
    while (history.end_unix_nano <= reported_unix_nano) {
      history.end_unix_nano += history.step_ns;
      history.alive = [...history.alive, null].slice(-90);
    }
    history.alive[history.alive.length - 1] = alive;
  }
}

export const live = new Live();

/** Draws again when something is heard. */
export function useLive(): Live {
  const [, again] = useReducer((n: number, _: void) => n + 1, 0);
  useEffect(() => live.subscribe(() => again()), []);
  return live;
}
