// What the API answers: gotrace-daemon/docs/formats.md. Unknown is null. Nanoseconds since 1970 lose their last digits in
// a number of JavaScript, which no view shows.

export interface Location {
  function: string;
  file: string | null;
  line: number | null;
}

/** One of gotrace.processes/1. */
export interface Process {
  pid: number;
  service: string | null;
  executable: string | null;
  go_version: string | null;
  namespace: string | null;
  pod: string | null;
  container: string | null;
  engine: string;
  level: string;
  level_wanted: string | null;
  level_lowered_by: string | null;
  alive: number | null;
  alive_is_lower_bound: boolean | null;
  interval_ns: number | null;
  born: number | null;
  died: number | null;
  lost: Record<string, number> | null;
  probe_cost_share: number | null;
  leaks_proven: number | null;
  leak_suspects: number | null;
  /** Whether it is of a recording, and comes to nothing more. */
  recorded: boolean;
  since_unix_nano: number;
  reported_unix_nano: number | null;
}

export interface Holder {
  goid: number;
  function: string | null;
  frame: Location | null;
  state: string;
  wait_reason: string | null;
  evidence: string;
}

/** One of gotrace.findings/1. */
export interface Finding {
  pid: number;
  service: string | null;
  namespace: string | null;
  pod: string | null;
  container: string | null;
  verdict: string;
  entry: Location | null;
  created_by: Location | null;
  waits_at: Location | null;
  wait_reason: string;
  count: number;
  growth_per_second: { low: number; high: number } | null;
  retained_bytes?: number | null;
  standing_ns?: number;
  goids: number[];
  others?: { count: number }[];
  place: string | null;
  holders: Holder[];
  why: string;
  suppressed: string | null;
  reported_unix_nano: number;
}

/** One of gotrace.history/1. */
export interface History {
  pid: number;
  since_unix_nano: number;
  step_ns: number;
  end_unix_nano: number;
  alive: (number | null)[];
  created?: (number | null)[];
  exited?: (number | null)[];
}

export interface Quantiles {
  p50: number | null;
  p50_at_least?: number | null;
  p99: number | null;
  p99_at_least?: number | null;
  max: number | null;
}

export interface Durations extends Quantiles {
  count: number;
  sum: number;
}

export interface Site {
  entry: Location | null;
  created_by: Location | null;
  system: boolean;
  alive: number;
  born: number;
  died: number;
  cpu_ns: number | null;
  throttled_ns: number;
  waiting: Record<string, number>;
  wait_ns: Quantiles;
  lifetime_ns: Quantiles;
  oldest_ns: number | null;
  oldest_is_lower_bound: boolean;
}

export interface WaitPlace extends Quantiles {
  reason: string;
  frame: Location | null;
  own: boolean;
  stack: Location[];
  stack_complete: boolean;
  system: boolean;
  count: number;
  total_ns: number;
  peer: string | null;
}

export interface TimeSpent {
  blocked: Record<string, number>;
  [state: string]: number | Record<string, number>;
}

export interface Route {
  protocol: string;
  method: string | null;
  route: string | null;
  handler: Location | null;
  count: number;
  errors: number;
  slow: number;
  open: number;
  oldest_open_ns: number | null;
  duration_ns: { p50: number | null; p99: number | null; max: number | null };
  time_ns: TimeSpent;
}

export interface RequestWait {
  offset_ns: number;
  duration_ns: number;
  reason: string;
  stack: Location[];
  own_code: Location | null;
  site: Location | null;
  peer: string | null;
  ended_by: { kind: string; goid: number | null };
  causes: { goid: number; function: string | null; state: string; duration_ns: number; frame: Location | null }[];
}

export interface SlowRequest {
  id: number;
  protocol: string;
  method: string | null;
  route: string | null;
  handler: Location | null;
  status: number | null;
  start_unix_nano: number;
  duration_ns: number;
  goid: number;
  open: boolean;
  ended: string | null;
  trace_id: string | null;
  time_ns: TimeSpent;
  waits: RequestWait[];
  waits_complete: boolean;
}

/** Of gotrace.attach/1. */
export interface Interval {
  pid: number;
  start_unix_nano: number;
  end_unix_nano: number;
  alive: number;
  alive_is_lower_bound: boolean;
  born: number;
  died: number;
  lost: Record<string, number>;
  repaired: Record<string, number>;
  waiting: Record<string, number>;
  waits: Record<string, Durations>;
  waits_at: WaitPlace[];
  waits_at_others: Durations;
  min_wait_ns: number | null;
  schedule_delay_ns: Durations;
  syscall_ns: Durations;
  gc: { cycles: Record<string, number>; pause_ns: Durations; mark_ns: Durations; assist_ns: Durations };
  requests: { routes: Route[]; slow: SlowRequest[]; slow_left_out: number; coverage: number } | null;
  process_cpu_ns: number | null;
  probe_cost_share: number | null;
  budget: number | null;
  engine: string;
  level: string;
  level_wanted: string;
  level_lowered_by: string | null;
  incomplete: string[];
  sites: Site[];
}

/** A group of gotrace.dump/1. */
export interface Group {
  count: number;
  first_goid: number;
  last_goid: number;
  state: string;
  wait_reason: string | null;
  system: boolean;
  entry: Location | null;
  created_by: Location | null;
  own_code: Location | null;
  stack: (Location & { internal: boolean })[];
  stack_complete: boolean;
}

/** Of gotrace.graph/1: goroutines that are alike. */
export interface WaitGroup {
  id: number;
  count: number;
  state: string;
  wait_reason: string | null;
  entry: Location | null;
  created_by: Location | null;
  own_code: Location | null;
  stack: (Location & { internal: boolean })[];
  goids: number[];
}

/** Of gotrace.graph/1: what they wait on; of several that are alike how many. */
export interface WaitObject {
  id: number;
  count: number;
  kind: string;
  waiting: number;
  address: string;
  len: number | null;
  cap: number | null;
  closed: boolean | null;
}

/** Of gotrace.graph/1. */
export interface WaitEdge {
  group: number;
  object: number;
  kind: "waits" | "refers" | "holds";
  op: string | null;
  count: number;
  evidence: string | null;
  frame: Location | null;
}
