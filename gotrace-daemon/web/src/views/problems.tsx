// What is wrong, the worst first.
import { At, Copy } from "../components";
import { facts, held, isProven, markdown, meaning, title } from "../findings";
import { count, plural, processName, time } from "../format";
import { href } from "../route";
import type { Finding } from "../types";

/** Shown at once; all others are a button away. */
const SHOWN = 10;

export function Problems({ findings, leftOut, of, named, query }: {
  findings: Finding[];
  leftOut: number;
  /** What was looked at, in words. */
  of: string;
  /** Whether each says which process it is in. */
  named: boolean;
  query: URLSearchParams;
}) {
  const open = findings.filter(({ suppressed }) => suppressed == null);
  const accepted = findings.length - open.length;
  const all = query.get("problems") === "all";
  const shown = all ? findings : open.slice(0, SHOWN);
  const hidden = findings.length - shown.length;
  return (
    <section aria-labelledby="problems">
      <h2 id="problems">
        Problems <span class={open.length ? "badge bad" : "badge"}>{count(open.length + leftOut)}</span>
      </h2>
      {open.length === 0 && <p class="empty">No leaked, deadlocked, stalled or stuck goroutines found in {of}.</p>}
      <ul class="problems">
        {shown.map((finding) => (
          <Problem key={identity(finding)} finding={finding} named={named} />
        ))}
      </ul>
      {hidden > 0 && (
        <a class="more" href={with_(query, "all")}>
          show {plural(hidden, "more", "more")}
          {accepted > 0 && `, ${accepted} of them accepted`}
        </a>
      )}
      {leftOut > 0 && <p class="dim">{plural(leftOut, "finding")} beyond the first 1,000 not told.</p>}
    </section>
  );
}

function with_(query: URLSearchParams, value: string): string {
  const more = new URLSearchParams(query);
  more.set("problems", value);
  return `${location.hash.split("?")[0] || "#/"}?${more}`;
}

function identity({ pid, verdict, entry, created_by, waits_at, wait_reason }: Finding): string {
  return [pid, verdict, entry?.function, created_by?.function, created_by?.line, waits_at?.function, waits_at?.line, wait_reason].join(" ");
}

function Problem({ finding, named }: { finding: Finding; named: boolean }) {
  const proven = isProven(finding);
  return (
    <li class={finding.suppressed != null ? "accepted" : proven ? "proven" : "suspected"}>
      <details>
        <summary>
          <span class="mark" aria-hidden="true">{proven ? "✖" : "▲"}</span>
          <strong title={meaning(finding)}>{title(finding)}</strong>
          <span class="what">
            {count(finding.count)} × <At at={finding.waits_at ?? finding.entry} unknown="a place that is not known" />
          </span>
          <span class="facts">
            {facts(finding).map((fact) => (
              <span key={fact}>{fact}</span>
            ))}
          </span>
        </summary>
        <dl>
          <dt>blocked at</dt>
          <dd><At at={finding.waits_at} /> <span class="dim">{finding.wait_reason}</span></dd>
          <dt>runs</dt>
          <dd><At at={finding.entry} /></dd>
          <dt>created by</dt>
          <dd><At at={finding.created_by} /></dd>
          {finding.holders.map((holder) => (
            <>
              <dt>{held(holder.evidence)}</dt>
              <dd>
                goroutine {holder.goid} <At at={holder.frame} /> <span class="dim">{holder.wait_reason ?? holder.state}</span>
              </dd>
            </>
          ))}
          <dt>why</dt>
          <dd>{finding.why}</dd>
          <dt>goroutines</dt>
          <dd class="goids">
            {finding.goids.join(" ")}
            {finding.count > finding.goids.length && " …"}
          </dd>
          <dt>as of</dt>
          <dd>{time(finding.reported_unix_nano)}</dd>
        </dl>
      </details>
      <span class="actions">
        {named && (
          <a href={href(finding.pid)}>
            {processName(finding)} <span class="dim">{finding.pid}</span>
          </a>
        )}
        <Copy what="as Markdown" text={() => markdown(finding, location.href.replace(/#.*/s, ""))} />
      </span>
    </li>
  );
}
