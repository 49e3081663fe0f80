// Numbers, times and names as people read them.
import type { Location, Process } from "./types";

export const none = "–";

export function count(n: number | null | undefined): string {
  return n == null ? none : n.toLocaleString("en-US");
}

function fraction(value: number, unit: string): string {
  return (value < 9.95 ? value.toFixed(1) : Math.round(value).toString()) + unit;
}

export function duration(ns: number | null | undefined): string {
  if (ns == null) return none;
  if (ns < 1e3) return `${ns} ns`;
  if (ns < 999_500) return fraction(ns / 1e3, " µs");
  if (ns < 999_500_000) return fraction(ns / 1e6, " ms");
  if (ns < 59.5e9) return fraction(ns / 1e9, " s");
  const s = Math.round(ns / 1e9);
  if (s < 3600) return `${Math.floor(s / 60)}m${String(s % 60).padStart(2, "0")}s`;
  if (s < 86_400) return `${Math.floor(s / 3600)}h${String(Math.floor(s / 60) % 60).padStart(2, "0")}m`;
  return `${Math.floor(s / 86_400)}d${Math.floor(s / 3600) % 24}h`;
}

/** A bound of a bucket, unless it is exact. */
export function quantile(ns: number | null, atLeast: number | null | undefined): string {
  return ns == null ? none : (atLeast === ns ? "" : "≤ ") + duration(ns);
}

export function bytes(n: number | null | undefined): string {
  if (n == null) return none;
  for (const unit of ["B", "KiB", "MiB"]) {
    if (n < 1024) return unit === "B" ? `${n} B` : fraction(n, ` ${unit}`);
    n /= 1024;
  }
  return fraction(n, " GiB");
}

/** A number a second. */
export function rate(n: number | null | undefined, interval_ns: number | null | undefined): string {
  const each = perSecond(n, interval_ns);
  return each == null ? none : number(each);
}

export function perSecond(n: number | null | undefined, interval_ns: number | null | undefined): number | null {
  // Of a shorter interval no rate is told.
  return n == null || interval_ns == null || interval_ns < 50e6 ? null : (n * 1e9) / interval_ns;
}

export function number(n: number): string {
  const size = Math.abs(n);
  if (size === 0) return "0";
  if (size < 0.05) return n < 0 ? "> −0.1" : "< 0.1";
  return (size < 99.95 ? n.toFixed(1) : count(Math.round(n))).replace("-", "−");
}

/** The same with a sign. */
export function change(n: number | null): string {
  if (n == null) return none;
  return n > 0 ? (n < 0.05 ? "< +0.1/s" : `+${number(n)}/s`) : n < 0 ? `${number(n)}/s` : "0";
}

export function percent(share: number | null | undefined): string {
  if (share == null) return none;
  const p = share * 100;
  if (p <= 0) return "0 %";
  if (p < 0.1) return "< 0.1 %";
  return p < 9.95 ? `${p.toFixed(1)} %` : `${Math.round(p)} %`;
}

/** CPU time as a number of CPUs. */
export function cpus(ns: number, of_ns: number): string {
  const all = ns / of_ns;
  return all === 0 ? "0" : all < 0.001 ? "< 0.001" : all < 0.995 ? all.toFixed(3) : number(all);
}

/** A function without the path of its package: `run.(*Group).Run.func2`. */
export function shortName(name: string): string {
  const bracket = name.search(/[[(]/);
  const path = name.lastIndexOf("/", bracket < 0 ? undefined : bracket);
  return name.slice(path + 1);
}

/** `main.go:118` */
export function position(at: Location): string | null {
  if (!at.file) return null;
  const file = at.file.slice(at.file.lastIndexOf("/") + 1);
  return at.line ? `${file}:${at.line}` : file;
}

export function place(at: Location | null): string {
  if (!at) return "not known";
  const where = position(at);
  return where ? `${shortName(at.function)} (${where})` : shortName(at.function);
}

/** What a process is called: its pod, else its service, else its executable. */
export function processName(of: Pick<Process, "pid" | "service" | "namespace" | "pod"> & { executable?: string | null }): string {
  if (of.pod) return of.namespace ? `${of.namespace}/${of.pod}` : of.pod;
  if (of.service) return of.service;
  return of.executable ? of.executable.slice(of.executable.lastIndexOf("/") + 1) : `pid ${of.pid}`;
}

export function sum(of: Record<string, number> | null | undefined): number {
  return Object.values(of ?? {}).reduce((sum, n) => sum + n, 0);
}

export function time(unix_nano: number): string {
  return new Date(unix_nano / 1e6).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${count(n)} ${n === 1 ? one : many}`;
}
