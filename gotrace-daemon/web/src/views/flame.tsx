// Stacks as a flame graph, drawn from profiles that gotrace answers with; two of them compared.
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";

import { ask } from "../api";
import { Filter, matches, Table, useWidth, type Column } from "../components";
import { count, duration, number, percent, shortName, time } from "../format";
import { changes, difference, layout, shade, stacks, tree, type Box, type Change, type Node } from "../flame";
import { read, type Profile } from "../pprof";
import { setQuery } from "../route";

interface Source {
  name: string;
  title: string;
  path: string;
  /** Number of the value in its samples. */
  which: number;
  shown: (n: number) => string;
  what: string;
  /** Of what time the values are: of now, since attaching, or of so many nanoseconds. */
  of: "now" | "attaching" | number;
}

const BLOCKED = { which: 1, shown: duration, what: "time that goroutines were blocked" };
const SOURCES: [Source, ...Source[]] = [
  { name: "wait", title: "time blocked, since attaching", path: "block?all=1", of: "attaching", ...BLOCKED },
  { name: "wait10", title: "time blocked, in the next 10 s", path: "block?all=1&seconds=10", of: 10e9, ...BLOCKED },
  { name: "locks", title: "time blocked, without sleep and network", path: "block", of: "attaching", ...BLOCKED },
  { name: "goroutines", title: "goroutines now", path: "goroutine", which: 0, shown: count, what: "goroutines", of: "now" },
  { name: "leaked", title: "goroutines proven to be leaked", path: "goroutineleak", which: 0, shown: count, what: "leaked goroutines", of: "now" },
];

/** A profile, and when it was taken. */
interface Picture {
  source: Source;
  profile: Profile;
  incomplete: string | null;
  time_ms: number;
}

/** What later pictures are compared with, by process and source. */
const marks = new Map<string, Picture>();

const ROW = 20;
/** Of a frame, in pixels. */
const LEAST = 2;
/** Of a character, in pixels. */
const CHARACTER = 6.7;

export function FlameView({ pid, since, query, paused }: { pid: number; since: number; query: URLSearchParams; paused: boolean }) {
  const source = SOURCES.find(({ name }) => name === query.get("of")) ?? SOURCES[0];
  const [taken, setTaken] = useState<Picture | null>(null);
  const [said, say] = useState("");
  const [asked, again] = useState(0);
  const [, marked] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    setTaken(null);
    say(source.name === "wait10" ? "watching for 10 s…" : "asking…");
    ask(`processes/${pid}/debug/pprof/${source.path}`, stop.signal)
      .then(async (response) => {
        const profile = await read(response.body!);
        setTaken({ source, profile, incomplete: response.headers.get("gotrace-incomplete"), time_ms: Date.now() });
        say("");
      })
      .catch((error: Error) => stop.signal.aborted || say(error.message));
    return () => stop.abort();
  }, [pid, source, asked]);
  const key = `${pid} ${since} ${source.name}`;
  const mark = marks.get(key) ?? null;
  const set = (picture: Picture | null) => {
    if (picture) marks.set(key, picture);
    else marks.delete(key);
    marked((n) => n + 1);
  };
  const wanted = query.get("q") ?? "";
  const compared = taken && mark && mark !== taken;
  return (
    <section aria-labelledby="flame">
      <div class="head">
        <h2 id="flame">Flame graph</h2>
        <select aria-label="profile" value={source.name} onChange={(event) => setQuery("of", event.currentTarget.value)}>
          {SOURCES.map(({ name, title }) => (
            <option key={name} value={name}>{title}</option>
          ))}
        </select>
        <button type="button" onClick={() => again(asked + 1)} disabled={paused && !taken}>take again</button>
        <button type="button" onClick={() => set(taken)} disabled={!taken} title="keeps this picture, to compare later ones with it">
          mark
        </button>
        <Filter value={wanted} what="functions (marks them)" />
      </div>
      {mark && (
        <p class="note">
          {compared ? "Compared with the picture" : "Marked the picture"} of {time(mark.time_ms * 1e6)}
          {!compared && taken && ": “take again” shows what has changed since"}.{" "}
          <button type="button" class="small" onClick={() => set(null)}>do not compare</button>
        </p>
      )}
      {said && <p class="note" role="status">{said}</p>}
      {[taken, compared ? mark : null].map((of, n) => of?.incomplete && <p key={n} class="note warn">Incomplete{n === 1 && ", the marked one"}: {of.incomplete}.</p>)}
      {taken && (compared ? <Compared before={mark} now={taken} since={since} wanted={wanted} /> : <Alone picture={taken} wanted={wanted} />)}
    </section>
  );
}

function Alone({ picture: { profile, source }, wanted }: { picture: Picture; wanted: string }) {
  const root = useMemo(() => tree(profile.samples, source.which), [profile, source]);
  const told = ({ value }: Node) => <><b>{source.shown(value)}</b> <span class="dim">{percent(value / root.value)} of {source.what}</span></>;
  return (
    <>
      <Flame root={root} what={source.what} told={told} style={({ kind }) => kind} wanted={wanted} />
      <p class="legend">
        {[["chan", "channel, select"], ["lock", "lock, WaitGroup, Cond"], ["io", "network, system call"], ["sleep", "sleep"], ["other", "other"], ["run", "not waiting"]].map(([kind, name]) => (
          <Patch key={kind} style={`${kind} reason`} name={name!} />
        ))}
      </p>
      {profile.comments.filter((comment) => !comment.startsWith("incomplete:")).map((comment) => (
        <p key={comment} class="dim">{comment}</p>
      ))}
    </>
  );
}

function Patch({ style, name }: { style: string; name: string }) {
  return (
    <span>
      <svg viewBox="0 0 10 10" aria-hidden="true"><g class={`frame ${style}`}><rect width="10" height="10" /></g></svg> {name}
    </span>
  );
}

/** Changes that are told in the table. */
const TOLD = 20;

/** Every stack of both in the same unit: goroutines, or of times how many were blocked on average. */
function between(before: Picture, now: Picture, since: number): Change[] {
  const { which, of } = now.source;
  const all = changes(stacks(before.profile.samples, which), stacks(now.profile.samples, which));
  if (of === "now") return all;
  if (of !== "attaching") return all.map((one) => ({ ...one, before: one.before / of, now: one.now / of }));
  // Sums since attaching: until the mark, and from then on.
  const until = Math.max(1, before.time_ms - since / 1e6) * 1e6;
  const from = Math.max(1, now.time_ms - before.time_ms) * 1e6;
  return all.map((one) => ({ ...one, before: one.before / until, now: Math.max(0, one.now - one.before) / from }));
}

function Compared({ before, now, since, wanted }: { before: Picture; now: Picture; since: number; wanted: string }) {
  const all = useMemo(() => between(before, now, since), [before, now, since]);
  const root = useMemo(() => difference(all), [all]);
  const counted = now.source.of === "now";
  const unit = counted ? now.source.what : "goroutines blocked, on average";
  const shown = counted ? count : number;
  const signed = (n: number) => `${n > 0 ? "+" : n < 0 ? "−" : ""}${shown(Math.abs(n))}`;
  const least = counted ? 1 : 0.01;
  const changed = all.filter((one) => Math.abs(one.now - one.before) >= least).sort((a, b) => Math.abs(b.now - b.before) - Math.abs(a.now - a.before));
  const told = ({ before = 0, now = 0 }: Node) => <><b>{shown(before)} → {shown(now)}</b> <span class="dim">({signed(now - before)}) {unit}</span></>;
  const reason = ({ names }: Change) => (names.at(-1)?.startsWith("[") ? names.at(-1)!.slice(1, -1) : "");
  const where = ({ names }: Change) => names.findLast((name) => !name.startsWith("[")) ?? "";
  const columns: Column<Change>[] = [
    { name: "where", title: "where", cell: (one) => <span class="function" title={one.names.join("\n")}>{shortName(where(one))}</span> },
    { name: "outer", title: "below", wide: true, help: "the functions that called it, the nearest first", cell: (one) => <span class="dim">{one.names.filter((name) => !name.startsWith("[")).slice(0, -1).reverse().slice(0, 3).map(shortName).join(" ← ")}</span> },
    { name: "reason", title: "reason", cell: reason },
    { name: "before", title: "before", numeric: true, cell: (one) => shown(one.before) },
    { name: "now", title: counted ? "now" : "since", numeric: true, cell: (one) => shown(one.now) },
    { name: "change", title: "change", numeric: true, cell: (one) => <b class={one.now > one.before ? "rise" : "fall"}>{signed(one.now - one.before)}</b> },
  ];
  return (
    <>
      <p class="note">
        {now.source.of === "attaching"
          ? "How many goroutines were blocked on average: until the mark, and since then, by waits that have ended."
          : counted ? `Number of ${unit}, then and now.` : "How many goroutines were blocked on average, in 10 s each."}{" "}
        Red has grown, blue has shrunk; each is as wide as the larger of both.
      </p>
      <Flame root={root} what={unit} told={told} style={shade} wanted={wanted} />
      <p class="legend">
        {[["grew much3", "grew much"], ["grew much1", "grew"], ["same", "about as before"], ["shrank much1", "shrank"], ["shrank much3", "shrank much"]].map(([style, name]) => (
          <Patch key={style} style={style!} name={name!} />
        ))}
      </p>
      <h3>What changed most</h3>
      <Table
        caption="What changed most"
        columns={columns}
        rows={changed.slice(0, TOLD)}
        keyOf={({ names }) => names.join("\n")}
        sort=""
        empty="Nothing has changed."
      />
      {changed.length > TOLD && <p class="dim">and {count(changed.length - TOLD)} more stacks with smaller changes</p>}
    </>
  );
}

interface FlameProps {
  root: Node;
  /** What its values are, in words. */
  what: string;
  /** What is told of a frame. */
  told: (of: Node) => ComponentChildren;
  /** Its colour. */
  style: (of: Node) => string;
  wanted: string;
}

function Flame({ root, what, told, style, wanted }: FlameProps) {
  const [outer, width] = useWidth(200);
  const [zoom, setZoom] = useState<Box | null>(null);
  const [focus, setFocus] = useState<Box | null>(null);
  const boxes = useMemo(() => layout(root, LEAST / width / 20), [root, width]);
  useEffect(() => {
    setZoom(null);
    setFocus(null);
  }, [root]);
  if (root.value === 0) return <p class="empty">There are none.</p>;
  const from = zoom ?? boxes[0]!;
  const inside = (box: Box) => box.x + 1e-12 >= from.x && box.x + box.width <= from.x + from.width + 1e-12;
  const shown = boxes.filter((box) => {
    const above = box.depth < from.depth && box.x <= from.x + 1e-12 && box.x + box.width + 1e-12 >= from.x + from.width;
    return above || (inside(box) && (box.width / from.width) * width >= LEAST);
  });
  const depth = Math.max(...shown.map((box) => box.depth)) + 1;
  const at = focus && shown.includes(focus) ? focus : from;
  const go = (event: KeyboardEvent) => {
    const siblings = shown.filter((box) => box.parent === at.parent);
    const next = {
      ArrowUp: at.parent,
      ArrowDown: shown.find((box) => box.parent === at),
      ArrowRight: siblings[siblings.indexOf(at) + 1],
      ArrowLeft: siblings[siblings.indexOf(at) - 1],
    }[event.key];
    if (event.key === "Enter" || event.key === " ") setZoom(at);
    else if (event.key === "Escape") setZoom(null);
    else if (next) setFocus(next);
    else return;
    event.preventDefault();
  };
  return (
    <>
      <p class="frame" aria-live="polite">
        <span class="function">{at.node.name}</span> {told(at.node)}
        {zoom && zoom.parent && (
          <button type="button" class="small" onClick={() => setZoom(null)}>show all</button>
        )}
      </p>
      <div class="flame" ref={outer}>
        <svg
          width={width}
          height={depth * ROW}
          tabindex={0}
          role="application"
          aria-label={`flame graph of ${what}; arrows move, Enter zooms, Escape shows all`}
          onKeyDown={go}
        >
          {shown.map((box) => {
            const x = box.depth < from.depth ? 0 : ((box.x - from.x) / from.width) * width;
            const w = box.depth < from.depth ? width : (box.width / from.width) * width;
            const hit = wanted !== "" && matches(wanted, box.node.name);
            const room = Math.floor((w - 6) / CHARACTER);
            const name = box.node.name.startsWith("[") ? box.node.name : shortName(box.node.name);
            return (
              <g
                key={`${box.depth} ${box.x} ${box.node.name}`}
                class={`frame ${style(box.node)}${box.node.name.startsWith("[") ? " reason" : ""}${hit ? " hit" : ""}${box === at ? " at" : ""}`}
                onClick={() => setZoom(box)}
                onPointerEnter={() => setFocus(box)}
              >
                <rect x={x.toFixed(1)} y={box.depth * ROW} width={Math.max(1, w - 1).toFixed(1)} height={ROW - 1} />
                {room > 2 && (
                  <text x={(x + 4).toFixed(1)} y={box.depth * ROW + 14}>{name.length > room ? `${name.slice(0, room - 1)}…` : name}</text>
                )}
              </g>
            );
          })}
        </svg>
      </div>
    </>
  );
}
