//! What `gotrace inspect` says of a binary's request servers.

use std::io::{self, Write};

use serde_json::{Value, json};

use gotrace_go::{
    Binary,
    requests::{Point, Requests},
};

/// What the executable tells of its requests. What cannot be read is said instead.
pub fn of(binary: &Binary, executable: &[u8]) -> Requests {
    binary
        .requests(executable, &[])
        .unwrap_or_else(|e| Requests { missing: vec![e.to_string()], ..Requests::default() })
}

/// The values at a point, each with its register.
fn values<'a>(binary: &Binary, point: &'a Point) -> impl Iterator<Item = (&'a str, &'static str)> + use<'a> {
    let arch = binary.arch();
    point.values.iter().filter_map(move |&(name, n)| Some((name, arch.argument_register(n)?)))
}

/// The member `requests` of `gotrace.inspect/1`.
pub fn to_json(binary: &Binary, requests: &Requests) -> Value {
    let points: Vec<_> = requests
        .points
        .iter()
        .map(|p| {
            json!({
                "server": p.server,
                "moment": p.moment,
                "function": p.function,
                "address": format!("{:#x}", p.address),
                "file_offset": format!("{:#x}", p.file_offset),
                "instruction": p.instruction,
                "emulated": p.emulated,
                "values": values(binary, p).map(|(name, register)| (name.to_owned(), register.into()))
                    .collect::<serde_json::Map<_, _>>(),
            })
        })
        .collect();
    json!({
        "servers": requests.servers,
        "points": points,
        "routes": requests.routes.map(|(routes, how)| json!({ "by": routes, "how": how })),
        "fields": requests.fields,
        "headers": requests.headers,
        "span_type": requests.span_type.map(|address| format!("{address:#x}")),
        "route_type": requests.route_type.map(|address| format!("{address:#x}")),
        "missing": requests.missing,
    })
}

/// The block of the text.
///
/// # Errors
/// Those of the writer.
pub fn render(binary: &Binary, requests: &Requests, out: &mut dyn Write) -> io::Result<()> {
    if requests.servers.is_empty() && requests.missing.is_empty() {
        return writeln!(
            out,
            "\nrequests: none: neither a server of net/http, golang.org/x/net/http2 or gRPC nor the OpenTelemetry SDK \
             is in it"
        );
    }
    writeln!(out, "\nrequests: probe points of `gotrace requests`")?;
    for server in &requests.servers {
        writeln!(out, "  {}", server.name())?;
        for p in requests.points.iter().filter(|p| p.server == *server) {
            let held: Vec<_> =
                values(binary, p).map(|(name, register)| format!("{name} in {register}")).collect();
            let kernel = if p.emulated { "emulated" } else { "single-stepped (slow)" };
            writeln!(
                out,
                "    {:<7}  {}  {:#x}  {:#x}  {}  {kernel}  {}",
                p.moment.name(),
                p.function,
                p.address,
                p.file_offset,
                p.instruction,
                held.join(", ")
            )?;
        }
    }
    if let Some((_, how)) = requests.routes {
        writeln!(out, "  routes of net/http are told {how}")?;
    }
    if !requests.fields.is_empty() {
        writeln!(out, "  fields, in bytes, from type descriptors (-> follows a pointer)")?;
        let width = requests.fields.keys().map(|k| k.len()).max().unwrap_or_default();
        for (field, path) in &requests.fields {
            let steps: Vec<_> = path.0.iter().map(u32::to_string).collect();
            writeln!(out, "    {field:<width$}  {}", steps.join(" -> "))?;
        }
    }
    if let Some(m) = requests.headers {
        let (kind, unit) = if m.swiss { ("Swiss map", "groups") } else { ("map", "buckets") };
        writeln!(
            out,
            "  http.Header is a {kind} with {unit} of {} bytes: keys at {}, each {}; elements at {}, each {}",
            m.size, m.keys, m.key_stride, m.elements, m.element_stride
        )?;
    }
    for missing in &requests.missing {
        writeln!(out, "  missing: {missing}")?;
    }
    Ok(())
}
