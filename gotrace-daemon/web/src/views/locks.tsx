// Who waits for which lock or channel, and who holds it: a picture, and a list that has all of it.
import { useEffect, useMemo, useState } from "preact/hooks";

import { askLines } from "../api";
import { At, Filter, matches, Table, type Column } from "../components";
import { held } from "../findings";
import { count, place, plural, shortName, time } from "../format";
import { setQuery } from "../route";
import type { WaitEdge, WaitGroup, WaitObject } from "../types";
import { doing, draw, groupName, kindOf, objectFacts, objectName, parse, summary, type At as Node, type Waits } from "../waits";
import { Stack } from "./places";

/** A lock or channel, and those that have to do with it. */
interface Row {
  key: string;
  object: WaitObject;
  waits: Other[];
  holds: Other[];
  refers: Other[];
}

interface Other {
  group: WaitGroup;
  edge: WaitEdge;
}

function rows({ groups, objects, edges }: Waits): Row[] {
  const byId = new Map(groups.map((group) => [group.id, group]));
  return objects.map((object) => {
    const of = (kind: WaitEdge["kind"]): Other[] =>
      edges
        .filter((edge) => edge.object === object.id && edge.kind === kind)
        .flatMap((edge) => (byId.has(edge.group) ? [{ group: byId.get(edge.group)!, edge }] : []))
        .sort((a, b) => b.edge.count - a.edge.count);
    return { key: `${object.kind} ${object.address}`, object, waits: of("waits"), holds: of("holds"), refers: of("refers") };
  });
}

export function LocksView({ pid, query }: { pid: number; query: URLSearchParams }) {
  const [waits, setWaits] = useState<Waits | null>(null);
  const [said, say] = useState("reading its goroutines…");
  const [asked, ask] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    askLines(`api/v1/processes/${pid}/graph`, stop.signal).then(
      (lines) => {
        setWaits(parse(lines));
        say("");
      },
      (error: Error) => stop.signal.aborted || say(`cannot read its goroutines: ${error.message}`),
    );
    return () => stop.abort();
  }, [pid, asked]);
  const wanted = query.get("q") ?? "";
  const selected = query.get("at");
  const choose = (key: string) => setQuery("at", key === selected ? "" : key);
  const all = useMemo(() => (waits ? rows(waits) : []), [waits]);
  const names = ({ group }: Other) => [group.own_code?.function, group.entry?.function, group.created_by?.function];
  const shown = all.filter((row) =>
    matches(wanted, objectName(row.object), row.object.kind, ...[...row.waits, ...row.holds, ...row.refers].flatMap(names)),
  );
  const picture = useMemo(() => {
    if (!waits) return null;
    const ids = new Set(shown.map(({ object }) => object.id));
    return { ...waits, objects: waits.objects.filter(({ id }) => ids.has(id)), edges: waits.edges.filter(({ object }) => ids.has(object)) };
  }, [waits, wanted]);
  const columns: Column<Row>[] = [
    { name: "object", title: "lock or channel", value: (r) => r.object.kind, cell: (r) => <span title={objectFacts(r.object)}>{objectName(r.object)}</span> },
    { name: "waiting", title: "waiting", numeric: true, value: (r) => r.object.waiting, cell: (r) => count(r.object.waiting) },
    { name: "waits", title: "who waits", cell: (r) => <Others of={r.waits} /> },
    { name: "holds", title: "held by", cell: (r) => (r.holds.length ? <Holders of={r.holds} /> : <span class="dim">{r.object.kind.includes("mutex") ? "not known" : "–"}</span>) },
    { name: "refers", title: "others that use it", wide: true, help: "their stacks have its address: they may use it, or have done so", cell: (r) => <Others of={r.refers} /> },
  ];
  const chosen = shown.find(({ key }) => key === selected);
  return (
    <section aria-labelledby="locks">
      <div class="head">
        <h2 id="locks">Locks and channels</h2>
        <Filter value={wanted} what="function, kind" />
      </div>
      <p class="note">
        {waits ? `A snapshot of ${time(waits.time_unix_nano)}: ${summary(waits)}.` : said}{" "}
        <button type="button" class="small" onClick={() => ask(asked + 1)}>read goroutines again</button>
        {waits && said && <strong class="bad"> {said}</strong>}
      </p>
      {waits && <Missing waits={waits} />}
      {picture && picture.objects.length > 0 && <Drawing waits={picture} selected={chosen?.object.id ?? null} choose={(object) => choose(`${object.kind} ${object.address}`)} />}
      {waits && (
        <Table
          caption="Locks and channels that goroutines wait on"
          columns={columns}
          rows={shown}
          keyOf={({ key }) => key}
          sort={query.get("sort") ?? "waiting"}
          selected={selected}
          onSelect={({ key }) => choose(key)}
          empty={wanted ? "None matches the filter." : "No goroutine waits for a lock or channel just now."}
        />
      )}
      {chosen && <Details row={chosen} all={all} />}
    </section>
  );
}

/** What the snapshot does not say. */
function Missing({ waits }: { waits: Waits }) {
  const { objectsLeftOut, goroutinesLeftOut, holdersUnknown, locksNotSearched, referencesComplete, waitsUnreadable } = waits;
  const missing = [
    (objectsLeftOut > 0 || goroutinesLeftOut > 0) &&
      `Left out: ${plural(objectsLeftOut, "lock or channel", "locks and channels")} with fewer waiting, and ${plural(goroutinesLeftOut, "goroutine")}.`,
    holdersUnknown && `Who holds locks is not known: ${holdersUnknown}.`,
    locksNotSearched > 0 && `Of ${plural(locksNotSearched, "lock")} with fewer waiting the holder was not looked for.`,
    !referencesComplete && "Who else uses the channels was not looked for everywhere: too many goroutines wait on some.",
    waitsUnreadable > 0 && `What ${plural(waitsUnreadable, "goroutine waits", "goroutines wait")} on could not be read.`,
  ].filter((text) => text !== false && text != null && text !== "");
  return <>{missing.map((text) => <p key={String(text)} class="note warn">{text}</p>)}</>;
}

const BOX = { width: 224, height: 40, across: 96, down: 14 };
/** Below the boxes, for those that lead back. */
const BACK = 70;
/** Of a character, in pixels. */
const CHARACTER = 6.4;

function Drawing({ waits, selected, choose }: { waits: Waits; selected: number | null; choose: (object: WaitObject) => void }) {
  const { nodes, edges, columns, rows, objectsLeft, groupsLeft } = useMemo(() => draw(waits), [waits]);
  const { width, height, across, down } = BOX;
  const x = (node: Node) => 2 + node.column * (width + across);
  const y = (node: Node) => 2 + node.row * (height + down);
  const leadsBack = ({ from, to }: { from: Node; to: Node }) => to.column <= from.column;
  const below = edges.some(leadsBack) ? BACK : 0;
  const whole = [4 + columns * (width + across) - across, 4 + rows * (height + down) - down + below] as const;
  const near = new Set(edges.filter(({ edge }) => edge.object === selected).flatMap(({ from, to }) => [from.id, to.id]));
  const faint = (...ids: string[]) => (selected != null && !ids.every((id) => near.has(id)) ? " faint" : "");
  const lines = ({ group, object }: Node): [string, string] => {
    if (group) return [groupName(group), `${doing(group)}${group.count === 1 ? `, goroutine ${group.goids[0]}` : ""}`];
    return [objectName(object!), `${count(object!.waiting)} waiting${objectFacts(object!) && `, ${objectFacts(object!)}`}`];
  };
  return (
    <div class="wide">
      <div class="scroll graph" tabindex={0} role="region" aria-label="picture of who waits for whom">
        <svg width={whole[0]} height={whole[1]} role="img" aria-label="who waits for which lock or channel, and who holds it; the table below says the same">
          <defs>
            <marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerUnits="userSpaceOnUse" markerWidth="9" markerHeight="9" orient="auto-start-reverse">
              <path d="M0 0 L8 4 L0 8 z" />
            </marker>
          </defs>
          {edges.map(({ from, to, edge }) => {
            const back = leadsBack({ from, to });
            const [x1, y1, x2, y2] = [x(from) + width, y(from) + height / 2, x(to), y(to) + height / 2];
            const under = Math.max(y1, y2) + height / 2;
            const path = back
              ? `M${x1 - width / 2} ${y(from) + height} C${x1 - width / 2} ${under + BACK} ${x2 + width / 2} ${under + BACK} ${x2 + width / 2} ${y(to) + height}`
              : `M${x1} ${y1} C${x1 + across / 2} ${y1} ${x2 - across / 2} ${y2} ${x2} ${y2}`;
            return (
              <g key={`${from.id} ${to.id} ${edge.kind} ${edge.op}`} class={`edge ${edge.kind} ${edge.evidence ?? ""}${faint(from.id, to.id)}`}>
                <path d={path} marker-end="url(#arrow)" />
                <text x={(x1 + x2) / 2} y={back ? under + BACK * 0.75 + 4 : (y1 + y2) / 2 - 4} text-anchor="middle">{edgeName(edge)}</text>
              </g>
            );
          })}
          {nodes.map((node) => {
            const [first, second] = lines(node).map((text) => cut(text));
            const { object, group } = node;
            return (
              <g key={node.id} class={`node ${object ? `${kindOf(object)} object` : "group"}${faint(node.id)}`} onClick={object ? () => choose(object) : undefined}>
                <title>{`${lines(node).join("\n")}${group?.created_by ? `\ncreated by ${place(group.created_by)}` : ""}`}</title>
                <rect x={x(node)} y={y(node)} width={width} height={height} rx={object ? 18 : 4} />
                <text x={x(node) + 12} y={y(node) + 17}>{first}</text>
                <text class="second" x={x(node) + 12} y={y(node) + 32}>{second}</text>
              </g>
            );
          })}
        </svg>
      </div>
      <p class="legend">
        <span>→ waits for</span>
        <span>⇒ held by (bold: certain; dashed: probably)</span>
        <span>⇢ used by (dotted: its stack has the address)</span>
        {objectsLeft > 0 && <span>{plural(objectsLeft, "more", "more")} in the table only</span>}
        {groupsLeft > 0 && <span>{plural(groupsLeft, "more group")} in the table only</span>}
      </p>
    </div>
  );
}

function edgeName({ kind, op, evidence, count: n }: WaitEdge): string {
  const name = kind === "waits" ? (op ?? "waits") : kind === "refers" ? "used by" : held(evidence ?? "");
  return n === 1 ? name : `${name} × ${count(n)}`;
}

function cut(text: string): string {
  const room = Math.floor((BOX.width - 20) / CHARACTER);
  return text.length > room ? `${text.slice(0, room - 1)}…` : text;
}

function Others({ of }: { of: Other[] }) {
  const [first] = of;
  if (!first) return <span class="dim">–</span>;
  return (
    <>
      {count(first.edge.count)} × <At at={first.group.own_code ?? first.group.entry} unknown="place not known" />
      {of.length > 1 && <span class="dim"> and {plural(of.length - 1, "more place")}</span>}
    </>
  );
}

function Holders({ of }: { of: Other[] }) {
  const { group, edge } = of[0]!;
  return (
    <>
      {edge.evidence !== "locked" && <span class="warn">{held(edge.evidence ?? "").replace(" held by", "")} </span>}
      {group.count === 1 && `goroutine ${group.goids[0]} `}
      <At at={edge.frame ?? group.own_code} unknown="place not known" /> <span class="dim">{doing(group)}</span>
      {of.length > 1 && <span class="dim"> or {plural(of.length - 1, "other")}</span>}
    </>
  );
}

function Details({ row: { object, waits, holds, refers }, all }: { row: Row; all: Row[] }) {
  const facts = objectFacts(object);
  return (
    <section class="details" aria-label="details of the lock or channel">
      <h3>{objectName(object)} <span class="dim">{facts}</span></h3>
      <Groups title={`${plural(object.waiting, "goroutine waits", "goroutines wait")} for it`} of={waits} all={all} />
      {holds.length > 0 && <Groups title="It is held by" of={holds} all={all} />}
      {refers.length > 0 && <Groups title="Others whose stacks have its address: they may use it, or have done so" of={refers} all={all} />}
    </section>
  );
}

function Groups({ title, of, all }: { title: string; of: Other[]; all: Row[] }) {
  return (
    <>
      <h4>{title}</h4>
      {of.map(({ group, edge }) => {
        const next = edge.kind === "waits" ? undefined : all.find(({ waits }) => waits.some((other) => other.group.id === group.id));
        return (
          <details key={`${group.id} ${edge.op}`} open={of.length === 1}>
            <summary>
              {edge.kind === "holds" && <>{held(edge.evidence ?? "")} </>}
              {count(edge.count)} × <At at={edge.frame ?? group.own_code ?? group.entry} unknown="place not known" /> <span class="dim">{edge.op ?? doing(group)}</span>
              {next && <> which waits for {objectName(next.object)}</>}
            </summary>
            <p class="dim">
              {shortName(group.entry?.function ?? "a function that is not known")}, created by {place(group.created_by)}; {group.count === 1 ? "goroutine" : "goroutines of this kind:"} {group.goids.join(" ")}
              {group.count > group.goids.length && " …"}
            </p>
            <Stack stack={group.stack.filter(({ internal }) => !internal)} complete />
          </details>
        );
      })}
    </>
  );
}
