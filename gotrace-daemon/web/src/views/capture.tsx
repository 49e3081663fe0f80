// What can be taken along: dumps and profiles, as files and as commands.
import { Copy } from "../components";
import type { Process } from "../types";

export function CaptureView({ row: { pid } }: { row: Process }) {
  const pprof = `processes/${pid}/debug/pprof`;
  const base = new URL(".", location.href.replace(/#.*/s, "")).href;
  const files: [title: string, path: string, name: string, what: string][] = [
    ["Goroutines as text", `${pprof}/goroutine?debug=2`, `goroutines-${pid}.txt`, "every goroutine with its stack, as a Go traceback"],
    ["Goroutines, grouped, as JSON", `api/v1/processes/${pid}/goroutines`, `goroutines-${pid}.jsonl`, "one line for each group with the same stack"],
    ["Goroutine profile", `${pprof}/goroutine`, `goroutine-${pid}.pb.gz`, "for go tool pprof"],
    ["Block profile", `${pprof}/block?all=1`, `block-${pid}.pb.gz`, "where goroutines were blocked since attaching, for go tool pprof; from level waits on"],
    ["Profile of leaked goroutines", `${pprof}/goroutineleak`, `goroutineleak-${pid}.pb.gz`, "those proven to be leaked, as of the last proof"],
    ["Last report as JSON", `api/v1/processes/${pid}`, `report-${pid}.json`, "all that this page shows of the process"],
  ];
  const commands = [
    `go tool pprof -http=: '${base}${pprof}/goroutine'`,
    `go tool pprof -top '${base}${pprof}/block?seconds=10'`,
    `curl '${base}${pprof}/goroutineleak?fresh=1&debug=1'`,
    `gotrace leaks ${pid} --watch 60s`,
    `gotrace record ${pid} -o ${pid}.gtr`,
  ];
  return (
    <section aria-labelledby="capture">
      <h2 id="capture">Capture</h2>
      <p class="note">Each reads the memory of the process once, or nothing of it: it is not stopped, and does not notice.</p>
      <ul class="captures">
        {files.map(([title, path, name, what]) => (
          <li key={path}>
            <a href={path} download={name}>{title}</a> <span class="dim">{what}</span>
          </li>
        ))}
      </ul>
      <h3>On the command line</h3>
      <ul class="commands">
        {commands.map((command) => (
          <li key={command}>
            <code>{command}</code> <Copy what={command} text={() => command} />
          </li>
        ))}
      </ul>
    </section>
  );
}
