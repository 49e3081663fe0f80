//! Reads OTLP JSON lines as `gotrace --export` and OpenTelemetry's file exporter write them, from the
//! text alone: no code of gotrace is used, so that what it writes is judged independently.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A span with its attributes as text.
#[derive(Clone, Debug)]
pub struct Span {
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits.
    pub span_id: String,
    /// 16 hex digits, or nothing.
    pub parent_span_id: String,
    /// Its name.
    pub name: String,
    /// Unix epoch.
    pub start_ns: u64,
    /// Unix epoch.
    pub end_ns: u64,
    /// Attributes; integers as decimal text.
    pub attributes: BTreeMap<String, String>,
    /// Trace and span ids of what it links to.
    pub links: Vec<(String, String)>,
    /// Attributes of its resource.
    pub resource: BTreeMap<String, String>,
}

impl Span {
    /// An attribute, or nothing.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// An attribute that is a whole number; 0 where there is none.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap_or(0)
    }

    /// The goroutine that it belongs to.
    #[must_use]
    pub fn goid(&self) -> u64 {
        self.number("gotrace.goroutine.id")
    }

    /// Of a wait, the function of the program's own code.
    #[must_use]
    pub fn own_code(&self) -> &str {
        match self.get("gotrace.own_code.function.name") {
            "" => self.get("code.function.name"),
            own_code => own_code,
        }
    }

    /// Whether it is a wait rather than a goroutine's life.
    #[must_use]
    pub fn is_wait(&self) -> bool {
        self.attributes.contains_key("gotrace.wait.reason")
    }
}

/// Everything that a file holds.
#[derive(Clone, Debug, Default)]
pub struct Export {
    /// All spans, in the file's order.
    pub spans: Vec<Span>,
    /// Names of all metrics seen.
    pub metrics: BTreeMap<String, usize>,
    /// Attributes of their points, each set once.
    pub series: BTreeSet<BTreeMap<String, String>>,
    /// All log records, in the file's order.
    pub logs: Vec<Value>,
}

impl Export {
    /// Reads a file's text.
    ///
    /// # Errors
    /// Where a line is not a request in OTLP's JSON form.
    pub fn parse(text: &str) -> Result<Self> {
        let mut this = Self::default();
        for (number, line) in text.lines().enumerate() {
            this.line(line).with_context(|| format!("line {} of the export", number + 1))?;
        }
        Ok(this)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let request: Value = serde_json::from_str(line).context("not JSON")?;
        if let Some(resources) = request.get("resourceSpans") {
            for one in list(resources) {
                let resource = attributes(&one["resource"]["attributes"])?;
                for span in list(&one["scopeSpans"]).iter().flat_map(|s| list(&s["spans"])) {
                    self.spans.push(parse_span(span, &resource)?);
                }
            }
        } else if let Some(resources) = request.get("resourceMetrics") {
            for metric in list(resources)
                .iter()
                .flat_map(|r| list(&r["scopeMetrics"]))
                .flat_map(|s| list(&s["metrics"]))
            {
                let name = metric["name"].as_str().context("a metric without a name")?;
                *self.metrics.entry(name.to_owned()).or_default() += 1;
                let points =
                    ["sum", "gauge", "histogram"].into_iter().flat_map(|k| list(&metric[k]["dataPoints"]));
                for point in points {
                    self.series.insert(attributes(&point["attributes"])?);
                }
            }
        } else if let Some(resources) = request.get("resourceLogs") {
            let scopes = list(resources).iter().flat_map(|r| list(&r["scopeLogs"]));
            self.logs.extend(scopes.flat_map(|s| list(&s["logRecords"])).cloned());
        } else {
            bail!("neither spans nor metrics nor logs: {line}");
        }
        Ok(())
    }
}

fn parse_span(span: &Value, resource: &BTreeMap<String, String>) -> Result<Span> {
    let text = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
    let time = |name: &str| -> Result<u64> {
        let value = span[name].as_str().with_context(|| format!("{name} is not a string"))?;
        value.parse().with_context(|| format!("{name} {value:?}"))
    };
    let this = Span {
        trace_id: text("traceId"),
        span_id: text("spanId"),
        parent_span_id: text("parentSpanId"),
        name: text("name"),
        start_ns: time("startTimeUnixNano")?,
        end_ns: time("endTimeUnixNano")?,
        attributes: attributes(&span["attributes"])?,
        links: list(&span["links"])
            .iter()
            .map(|l| {
                let id = |name: &str| l[name].as_str().unwrap_or_default().to_owned();
                (id("traceId"), id("spanId"))
            })
            .collect(),
        resource: resource.clone(),
    };
    let hex = |s: &str, n: usize| {
        s.len() == n && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    ensure!(hex(&this.trace_id, 32), "trace id {:?}", this.trace_id);
    ensure!(hex(&this.span_id, 16), "span id {:?}", this.span_id);
    ensure!(this.parent_span_id.is_empty() || hex(&this.parent_span_id, 16), "parent id");
    ensure!(this.start_ns <= this.end_ns, "span {} ends before it begins", this.name);
    Ok(this)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn attributes(value: &Value) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for attribute in list(value) {
        let key = attribute["key"].as_str().context("an attribute without a key")?;
        let value = &attribute["value"];
        let text = value["stringValue"].as_str().or(value["intValue"].as_str());
        let text = text.map_or_else(|| value.to_string(), ToOwned::to_owned);
        ensure!(all.insert(key.to_owned(), text).is_none(), "attribute {key} twice");
    }
    Ok(all)
}
