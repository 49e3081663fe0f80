//! Holds what gotrace reads of request servers in Go executables against what the program itself says:
//! offsets by its own `reflect`, probe points on emulated instructions in the right functions.
//!
//! Input: `tests/go/server`, built by every version of the matrix, and `tests/go/rpc` by one, which needs modules
//! of others. No root, no kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use gotrace_go::{
    Binary,
    requests::{Moment, Requests, Routes, Server},
};
use gotrace_tests::gobuild::{Arch, Mode, VERSIONS, build, build_from, minor, workspace};

fn requests(path: &Path) -> (Binary, Requests) {
    let data = fs::read(path).expect("the fixture is readable");
    let binary = Binary::parse(&data).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let requests = binary.requests(&data, &[]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (binary, requests)
}

/// What the program prints of itself, by field.
fn own_account(program: &Path) -> BTreeMap<String, Vec<u32>> {
    let output = Command::new(program).output().expect("the program starts");
    let name = program.display();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let mut fields = BTreeMap::new();
    for line in text.lines() {
        let line = line.strip_prefix("exported ").unwrap_or(line);
        let mut words = line.split(' ');
        let field = words.next().expect("a name").to_owned();
        let steps: Vec<_> = words.map(|w| w.parse().expect("a number")).collect();
        // What `unsafe.Offsetof` says is said again by `reflect`.
        let before = fields.insert(field.clone(), steps.clone());
        assert!(before.is_none_or(|before| before == steps), "{name}: {field}");
    }
    fields
}

/// What must be true of every build; the program itself is asked only where it runs here.
fn check(path: &Path, arch: Arch, minor: u32) {
    let name = path.display();
    let (binary, found) = requests(path);
    assert_eq!(found.servers, [Server::Http, Server::Http2], "{name}");
    assert!(found.missing.is_empty(), "{name}: {:?}", found.missing);
    let end = if minor >= 27 {
        "net/http/internal/http2.(*responseWriter).handlerDone"
    } else {
        "net/http.(*http2responseWriter).handlerDone"
    };
    let points: Vec<_> = found.points.iter().map(|p| (p.server, p.moment, &*p.function)).collect();
    let expected = [
        (Server::Http, Moment::Begin, "net/http.serverHandler.ServeHTTP"),
        (Server::Http, Moment::Route, "net/http.(*ServeMux).ServeHTTP"),
        (Server::Http, Moment::Handler, "net/http.HandlerFunc.ServeHTTP"),
        (Server::Http, Moment::Panic, "runtime.gopanic"),
        (Server::Http, Moment::End, "net/http.(*response).finishRequest"),
        (Server::Http2, Moment::End, end),
    ];
    assert_eq!(points, expected, "{name}");
    for point in &found.points {
        assert!(point.emulated, "{name}: {point:?}");
        let function = binary.function_at(point.address).expect("a function");
        assert_eq!(function.name, point.function, "{name}");
        // The check of the stack, or the first call of the race detector: near the entry.
        assert!(point.address - function.entry < 64, "{name}: {point:?}");
        assert_eq!(binary.file_offset(point.address), Some(point.file_offset), "{name}");
    }
    let headers = found.headers.expect("a map");
    let layout = (headers.swiss, headers.size, headers.keys, headers.elements);
    assert_eq!(layout, if minor >= 24 { (true, 328, 8, 24) } else { (false, 336, 8, 136) }, "{name}");
    let fields: BTreeMap<_, _> =
        found.fields.iter().map(|(field, path)| ((*field).to_owned(), path.0.clone())).collect();
    if arch == Arch::HOST {
        assert_eq!(fields, own_account(path), "{name}");
    }
    let names: BTreeSet<_> = fields.keys().map(String::as_str).collect();
    assert_eq!(names.contains("http.request.pattern"), minor >= 22, "{name}: {names:?}");
    assert_eq!(names.len(), if minor >= 22 { 11 } else { 10 }, "{name}: {names:?}");
    // Its go.mod says 1.19: the mux is the old one.
    assert_eq!(found.routes.map(|(routes, _)| routes), Some(Routes::Handler), "{name}");
}

#[test]
fn fields_are_where_the_program_has_them_on_every_version() {
    for version in VERSIONS {
        let path = build("server", version, Mode::Stripped, Arch::HOST).expect("the fixture builds");
        check(&path, Arch::HOST, minor(version));
    }
}

#[test]
fn fields_are_where_the_program_has_them_in_every_mode() {
    for version in ["1.19.13", "1.27.3"] {
        for mode in [Mode::Plain, Mode::PieStripped, Mode::Cgo, Mode::Race] {
            let path = build("server", version, mode, Arch::HOST).expect("the fixture builds");
            check(&path, Arch::HOST, minor(version));
        }
    }
}

#[test]
fn points_of_the_other_architecture_are_emulated() {
    let other = if Arch::HOST == Arch::Amd64 { Arch::Arm64 } else { Arch::Amd64 };
    for (version, mode) in
        [("1.19.13", Mode::Stripped), ("1.23.12", Mode::Stripped), ("1.27.3", Mode::PieStripped)]
    {
        let path = build("server", version, mode, other).expect("the fixture cross-builds");
        check(&path, other, minor(version));
    }
}

#[test]
fn routes_are_told_as_the_mux_of_the_program_sets_them() {
    let source = workspace().join("tests/go/server/main.go");
    for (version, language, routes) in [
        ("1.22.12", "1.22", Routes::Pat),
        ("1.23.12", "1.23.0", Routes::Pattern),
        ("1.27.3", "1.24.0", Routes::Pattern),
    ] {
        let copy = tempfile::tempdir().expect("a directory");
        fs::copy(&source, copy.path().join("main.go")).expect("copied");
        let module = format!("module gotrace.test/server\n\ngo {language}\n");
        fs::write(copy.path().join("go.mod"), module).expect("written");
        let path = build_from(copy.path(), "server", version, Mode::Stripped, Arch::HOST).expect("it builds");
        let (_, found) = requests(&path);
        assert_eq!(found.routes.map(|(routes, _)| routes), Some(routes), "Go {version}");
    }
}

/// gRPC and the OpenTelemetry SDK, each of one version.
#[test]
fn calls_and_spans_are_where_the_program_has_them() {
    let path = build("rpc", "1.24.11", Mode::Stripped, Arch::HOST).expect("the fixture builds");
    let (binary, found) = requests(&path);
    assert_eq!(found.servers, [Server::Grpc, Server::OpenTelemetry]);
    assert!(found.missing.is_empty(), "{:?}", found.missing);
    let points: Vec<_> = found.points.iter().map(|p| (p.server, p.moment, &*p.function)).collect();
    let transport = "google.golang.org/grpc/internal/transport";
    let sdk = "go.opentelemetry.io/otel/sdk/trace";
    let expected = [
        (Server::Grpc, Moment::Begin, "google.golang.org/grpc.(*Server).handleStream".to_owned()),
        (Server::Grpc, Moment::End, format!("{transport}.(*http2Server).writeStatus")),
        (Server::Grpc, Moment::End, format!("{transport}.(*serverHandlerTransport).writeStatus")),
        (Server::Grpc, Moment::Carried, "google.golang.org/grpc.(*Server).ServeHTTP".to_owned()),
        (Server::OpenTelemetry, Moment::Begin, format!("{sdk}.(*tracer).Start")),
        (Server::OpenTelemetry, Moment::End, format!("{sdk}.(*recordingSpan).End")),
    ];
    assert!(points.iter().map(|(s, m, f)| (*s, *m, (*f).to_owned())).eq(expected), "{points:?}");
    for point in &found.points {
        assert!(point.emulated, "{point:?}");
        assert_eq!(binary.function_at(point.address).expect("a function").name, point.function);
    }
    assert!(found.points[4].instruction.ends_with("context.WithValue"), "{points:?}");
    let fields: BTreeMap<_, _> =
        found.fields.iter().map(|(field, path)| ((*field).to_owned(), path.0.clone())).collect();
    assert_eq!(fields, own_account(&path));
    assert_eq!((found.routes, found.headers), (None, None));
    assert!(found.span_type.is_some());
}

#[test]
fn a_program_without_servers_has_none() {
    let path = build("frames", "1.27.3", Mode::Stripped, Arch::HOST).expect("the fixture builds");
    assert_eq!(requests(&path).1, Requests::default());
}

/// Descriptors that lie: whatever they say, reading ends, and points stay within the file.
#[test]
fn damaged_descriptors_are_read_to_an_end() {
    for (version, mode) in [("1.19.13", Mode::PieStripped), ("1.27.3", Mode::Stripped)] {
        let path = build("server", version, mode, Arch::HOST).expect("the fixture builds");
        let whole = fs::read(&path).expect("readable");
        let binary = Binary::parse(&whole).expect("parses");
        // The names of the types that are looked for, and what lies around them and their descriptors.
        let places: Vec<_> = ["*http.Request", "*http.response", "*http.http2responseWriter"]
            .iter()
            .flat_map(|name| {
                let windows = whole.windows(name.len()).enumerate();
                windows.filter(|(_, w)| *w == name.as_bytes()).map(|(at, _)| at).take(8)
            })
            .collect();
        assert!(!places.is_empty());
        let mut state = 1u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 16
        };
        for round in 0..60 {
            let mut data = whole.clone();
            for _ in 0..400 {
                // In turn near a name, and anywhere: descriptors fill a good part of the file.
                let at = match round % 2 {
                    0 => places[random() as usize % places.len()] + random() as usize % 4096,
                    _ => random() as usize % data.len(),
                };
                let value = [0, u64::MAX, random(), 0x80, 1 << 63][random() as usize % 5];
                if let Some(word) = data.get_mut(at & !7..(at & !7) + 8) {
                    word.copy_from_slice(&value.to_le_bytes());
                }
            }
            if let Ok(found) = binary.requests(&data, &[]) {
                assert!(found.points.iter().all(|p| p.file_offset < data.len() as u64));
            }
        }
    }
}

/// Functions that are named are probed where they begin and return, at the depth of their callers; and the code of the
/// runtime and of `net/http` is told from theirs.
#[test]
fn named_functions_have_points_of_their_own() {
    for (version, mode) in
        [("1.19.13", Mode::PieStripped), ("1.24.11", Mode::Stripped), ("1.27.3", Mode::Stripped)]
    {
        let path = build("server", version, mode, Arch::HOST).expect("the fixture builds");
        let data = fs::read(&path).expect("readable");
        let binary = Binary::parse(&data).expect("parses");
        let named = ["main.main".to_owned(), "net/http.(*conn).serve".to_owned(), "main.none".to_owned()];
        let found = binary.requests(&data, &named).expect("they are read");
        assert!(found.refused.iter().all(|why| why.starts_with("there is no function main.none")));
        assert_eq!((found.refused.len(), found.servers[0]), (1, Server::Function), "{:?}", found.refused);
        let is_in =
            |address: u64| found.code.libraries.iter().any(|[from, to]| (*from..*to).contains(&address));
        let mut moments = BTreeMap::new();
        for point in &found.points {
            let function = binary.function_at(point.address).expect("a function");
            assert_eq!(function.name, point.function, "{version}");
            assert_eq!(is_in(point.address), !function.name.starts_with("main."), "{version}: {function:?}");
            if point.server == Server::Function {
                *moments.entry((point.moment, function.name.clone())).or_insert(0) += 1;
                assert_eq!(point.moment == Moment::End, point.instruction == "ret", "{version}: {point:?}");
            }
        }
        for name in &named[..2] {
            assert_eq!(moments.get(&(Moment::Begin, name.clone())), Some(&1), "{version}: {moments:?}");
            assert!(moments.contains_key(&(Moment::End, name.clone())), "{version}: {moments:?}");
        }
        assert_eq!(moments.get(&(Moment::Panic, "runtime.recovery".to_owned())), Some(&1), "{moments:?}");
    }
}
