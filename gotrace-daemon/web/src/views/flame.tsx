// Stacks as a flame graph, drawn from profiles that gotrace answers with.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import { ask } from "../api";
import { Filter, matches } from "../components";
import { count, duration, percent, shortName } from "../format";
import { layout, tree, type Box } from "../flame";
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
}

const SOURCES: [Source, ...Source[]] = [
  { name: "wait", title: "time blocked, since attaching", path: "block?all=1", which: 1, shown: duration, what: "time that goroutines were blocked" },
  { name: "wait10", title: "time blocked, in the next 10 s", path: "block?all=1&seconds=10", which: 1, shown: duration, what: "time that goroutines were blocked" },
  { name: "locks", title: "time blocked, without sleep and network", path: "block", which: 1, shown: duration, what: "time that goroutines were blocked" },
  { name: "goroutines", title: "goroutines now", path: "goroutine", which: 0, shown: count, what: "goroutines" },
  { name: "leaked", title: "goroutines proven to be leaked", path: "goroutineleak", which: 0, shown: count, what: "leaked goroutines" },
];

const ROW = 20;
/** Of a frame, in pixels. */
const LEAST = 2;
/** Of a character, in pixels. */
const CHARACTER = 6.7;

export function FlameView({ pid, query, paused }: { pid: number; query: URLSearchParams; paused: boolean }) {
  const source = SOURCES.find(({ name }) => name === query.get("of")) ?? SOURCES[0];
  const [taken, setTaken] = useState<{ source: Source; profile: Profile; incomplete: string | null } | null>(null);
  const [said, say] = useState("");
  const [asked, again] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    setTaken(null);
    say(source.name === "wait10" ? "watching for 10 s…" : "asking…");
    ask(`processes/${pid}/debug/pprof/${source.path}`, stop.signal)
      .then(async (response) => {
        const profile = await read(response.body!);
        setTaken({ source, profile, incomplete: response.headers.get("gotrace-incomplete") });
        say("");
      })
      .catch((error: Error) => stop.signal.aborted || say(error.message));
    return () => stop.abort();
  }, [pid, source, asked]);
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
        <Filter value={query.get("q") ?? ""} what="functions (marks them)" />
      </div>
      {said && <p class="note" role="status">{said}</p>}
      {taken?.incomplete && <p class="note warn">Incomplete: {taken.incomplete}.</p>}
      {taken && <Flame profile={taken.profile} source={taken.source} wanted={query.get("q") ?? ""} />}
    </section>
  );
}

function Flame({ profile, source, wanted }: { profile: Profile; source: Source; wanted: string }) {
  const root = useMemo(() => tree(profile.samples, source.which), [profile, source]);
  const [width, setWidth] = useState(1000);
  const [zoom, setZoom] = useState<Box | null>(null);
  const [focus, setFocus] = useState<Box | null>(null);
  const outer = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => entry && setWidth(Math.max(200, entry.contentRect.width)));
    if (outer.current) watch.observe(outer.current);
    return () => watch.disconnect();
  }, []);
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
  const whole = root.value;
  return (
    <>
      <p class="frame" aria-live="polite">
        <span class="function">{at.node.name}</span> <b>{source.shown(at.node.value)}</b> <span class="dim">{percent(at.node.value / whole)} of {source.what}</span>
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
          aria-label={`flame graph of ${source.what}; arrows move, Enter zooms, Escape shows all`}
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
                class={`frame ${box.node.kind}${box.node.name.startsWith("[") ? " reason" : ""}${hit ? " hit" : ""}${box === at ? " at" : ""}`}
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
      <p class="legend">
        {[["chan", "channel, select"], ["lock", "lock, WaitGroup, Cond"], ["io", "network, system call"], ["sleep", "sleep"], ["other", "other"], ["run", "not waiting"]].map(([kind, name]) => (
          <span key={kind}>
            <svg viewBox="0 0 10 10" aria-hidden="true"><g class={`frame ${kind} reason`}><rect width="10" height="10" /></g></svg> {name}
          </span>
        ))}
      </p>
      {profile.comments.filter((comment) => !comment.startsWith("incomplete:")).map((comment) => (
        <p key={comment} class="dim">{comment}</p>
      ))}
    </>
  );
}
