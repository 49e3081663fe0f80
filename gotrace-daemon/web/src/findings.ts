// How a finding is told: in a line, and as Markdown for a ticket.
import { bytes, count, duration, number, place, processName } from "./format";
import { href } from "./route";
import type { Finding } from "./types";

const TITLES: Record<string, string> = {
  unreachable: "LEAK",
  deadlock: "DEADLOCK",
  stalled: "STALLED",
  growing: "GROWING",
  orphaned: "ORPHANED",
};

const MEANINGS: Record<string, string> = {
  unreachable: "leaked: nothing that can still run has a reference to what they are blocked on",
  deadlock: "deadlocked: they wait for each other, or for ever",
  stalled: "stalled: they wait for a member of a pool that hands out none",
  stuck: "stuck: they have not run for long",
  growing: "growing: more and more come, and none finishes",
  orphaned: "orphaned: nothing else seems to refer to what they are blocked on",
};

export function title({ verdict, wait_reason }: Finding): string {
  if (verdict === "stuck") return /Mutex|semacquire/.test(wait_reason) ? "LOCK" : "STUCK";
  return TITLES[verdict] ?? verdict.toUpperCase();
}

export function meaning({ verdict }: Finding): string {
  return MEANINGS[verdict] ?? verdict;
}

/** Whether it is known, and not only suspected. */
export function isProven({ verdict }: Finding): boolean {
  return verdict === "unreachable" || verdict === "deadlock";
}

export function growth({ growth_per_second }: Finding): string | null {
  if (!growth_per_second) return null;
  const [low, high] = [number(growth_per_second.low), number(growth_per_second.high)];
  return low === high ? `+${low}/s` : `+${low} to ${high}/s`;
}

/** What can be said of it in few words, beside its place. */
export function facts(finding: Finding): string[] {
  const { retained_bytes, standing_ns, place: waitsFor, holders } = finding;
  const holder = holders[0];
  return [
    growth(finding),
    retained_bytes ? `retains ${bytes(retained_bytes)}` : null,
    standing_ns ? `blocked ≥ ${duration(standing_ns)}` : null,
    waitsFor,
    holder ? `${held(holder.evidence)} ${holder.frame ? place(holder.frame) : (holder.function ?? `goroutine ${holder.goid}`)}` : null,
    finding.suppressed ? `accepted: ${finding.suppressed}` : null,
  ].filter((fact) => fact != null);
}

export function held(evidence: string): string {
  if (evidence === "locked") return "held by";
  return evidence === "refers" ? "probably held by" : "perhaps held by";
}

/** Text that a program chose, as code: nothing in it is markup. */
function code(text: string): string {
  const line = text.replace(/[\s`]+/g, " ").trim();
  return `\`${line}\``;
}

export function markdown(finding: Finding, address: string): string {
  const { count: n, waits_at, created_by, entry, wait_reason, goids, others, why } = finding;
  const lines = [
    `**${title(finding)}** ${count(n)} ${n === 1 ? "goroutine" : "goroutines"} in ${code(processName(finding))} (pid ${finding.pid}) ${meaning(finding)}`,
    "",
    `- blocked at ${code(place(waits_at))}, ${code(wait_reason)}`,
    `- runs ${code(place(entry))}, created by ${code(place(created_by))}`,
    ...facts(finding).map((fact) => `- ${code(fact)}`),
    ...finding.holders.slice(1).map((holder) => `- ${held(holder.evidence)} ${code(`goroutine ${holder.goid}, ${place(holder.frame)}`)}`),
    ...(others?.length ? [`- with goroutines at ${others.length} more places in the same wait cycle`] : []),
    `- why: ${code(why)}`,
    `- goids: ${goids.slice(0, 16).join(" ")}${n > goids.length || goids.length > 16 ? " …" : ""}`,
    `- seen by gotrace at ${new Date(finding.reported_unix_nano / 1e6).toISOString()}: ${address}${href(finding.pid)}`,
  ];
  return `${lines.join("\n")}\n`;
}
