//! TARGET: which process a command is for, by pid, by the name of its executable, or by its pod.
//!
//! Input: an argument. Output: a pid. What names several processes, or none, is an error that lists those that there are.

use std::{fmt, str::FromStr};

use clap::{Args, value_parser};

use super::{
    CliError, Exit,
    programs::{Listed, Place, Pods, Running},
};

/// Processes that an error lists.
const MAX_LISTED: usize = 12;

/// The process that a command is for.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// Process: a pid, the name of its executable, or pod:[NAMESPACE/]POD[/CONTAINER]
    #[arg(value_name = "TARGET", required_unless_present = "pid", conflicts_with = "pid")]
    target: Option<TargetName>,
    /// Process, by pid
    #[arg(short, long, value_name = "PID", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pid: Option<u32>,
}

/// How a process is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TargetName {
    Pid(u32),
    /// The file name of its executable, or the whole path.
    Name(String),
    Pod {
        namespace: Option<String>,
        pod: String,
        container: Option<String>,
    },
}

impl FromStr for TargetName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(pod) = text.strip_prefix("pod:") {
            let parts: Vec<&str> = pod.split('/').collect();
            let (namespace, pod, container) = match parts[..] {
                [pod] => (None, pod, None),
                [namespace, pod] => (Some(namespace), pod, None),
                [namespace, pod, container] => (Some(namespace), pod, Some(container)),
                _ => ("".into(), "", None),
            };
            if pod.is_empty() || namespace.is_some_and(str::is_empty) || container.is_some_and(str::is_empty)
            {
                return Err("expected pod:POD, pod:NAMESPACE/POD or pod:NAMESPACE/POD/CONTAINER".into());
            }
            let owned = |text: Option<&str>| text.map(str::to_owned);
            return Ok(Self::Pod {
                namespace: owned(namespace),
                pod: pod.to_owned(),
                container: owned(container),
            });
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let pid = text.parse().ok().filter(|pid| (1..=i32::MAX.unsigned_abs()).contains(pid));
            return pid.map(Self::Pid).ok_or_else(|| format!("not a process id: they end at {}", i32::MAX));
        }
        if text.is_empty() {
            return Err("expected a pid, the name of an executable, or pod:[NAMESPACE/]POD".into());
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "{pid}"),
            Self::Name(name) => f.write_str(name),
            Self::Pod { namespace, pod, container } => {
                f.write_str("pod:")?;
                if let Some(namespace) = namespace {
                    write!(f, "{namespace}/")?;
                }
                f.write_str(pod)?;
                container.as_ref().map_or(Ok(()), |container| write!(f, "/{container}"))
            }
        }
    }
}

impl TargetArgs {
    /// The process that is meant.
    ///
    /// # Errors
    /// When several are (2), when none is (5), and when pods are not known (1).
    pub(super) fn pid(&self) -> Result<u32, CliError> {
        match (self.pid, &self.target) {
            (Some(pid), _) => Ok(pid),
            (None, Some(target)) => target.pid(),
            (None, None) => Err(CliError::usage("no TARGET or --pid given")),
        }
    }
}

impl TargetName {
    /// As [`TargetArgs::pid`].
    pub(super) fn pid(&self) -> Result<u32, CliError> {
        match self {
            Self::Pid(pid) => Ok(*pid),
            Self::Name(_) => self.pick(&Listed::now()?, |_| None),
            Self::Pod { .. } => {
                let pods = Pods::ask().map_err(|why| {
                    CliError::failure(format!("cannot find {self}: the pods of this node are not known: {why}"))
                        .help(
                            "run gotrace in its own pod (kubectl exec ds/gotrace -- gotrace …), set KUBECONFIG and \
                             K8S_NODE_NAME, or give a pid; `gotrace ps` lists the Go programs of this node",
                        )
                })?;
                self.pick(&Listed::now()?, |process| pods.place(&process.placement))
            }
        }
    }

    /// The one process that is meant. Of those with the name that is meant, Go programs come first.
    fn pick(&self, listed: &Listed, place: impl Fn(&Running) -> Option<Place>) -> Result<u32, CliError> {
        let meant: Vec<&Running> =
            listed.processes.iter().filter(|process| self.means(process, place(process).as_ref())).collect();
        let go: Vec<&Running> = meant.iter().copied().filter(|p| p.is_go).collect();
        let others = matches!(self, Self::Name(_)) && go.is_empty();
        match &(if others { meant } else { go })[..] {
            [one] => Ok(one.pid),
            [] => Err(self.none(listed)),
            several => Err(CliError::usage(format!("{} processes are {self}", several.len()))
                .help(format!("give the pid of one: {}", list(several.iter().copied())))),
        }
    }

    fn means(&self, process: &Running, place: Option<&Place>) -> bool {
        match self {
            Self::Pid(pid) => process.pid == *pid,
            Self::Name(name) if name.contains('/') => process.executable.as_os_str() == name.as_str(),
            Self::Name(name) => process.name == *name,
            Self::Pod { namespace, pod, container } => place.is_some_and(|place| {
                place.pod == *pod
                    && namespace.as_ref().is_none_or(|n| *n == place.namespace)
                    && container.as_ref().is_none_or(|c| place.container.as_ref() == Some(c))
            }),
        }
    }

    fn none(&self, listed: &Listed) -> CliError {
        let unreadable = match listed.unreadable {
            0 => String::new(),
            1 => "; 1 process may not be read, which requires root and CAP_SYS_PTRACE".to_owned(),
            n => format!("; {n} processes may not be read, which requires root and CAP_SYS_PTRACE"),
        };
        let programs: Vec<&Running> = listed.go().collect();
        let help = match programs.len() {
            0 => "no Go program runs here that gotrace can see".to_owned(),
            _ => format!("the Go programs here: {}", list(programs.into_iter())),
        };
        CliError::new(Exit::GONE, format!("no Go program here is {self}{unreadable}")).help(help)
    }
}

/// `4682 etcd, 21867 demo-shop`.
fn list<'a>(processes: impl ExactSizeIterator<Item = &'a Running>) -> String {
    let more = processes.len().saturating_sub(MAX_LISTED);
    let shown: Vec<String> = processes.take(MAX_LISTED).map(|p| format!("{} {}", p.pid, p.name)).collect();
    let more = if more > 0 { format!(" and {more} more (`gotrace ps`)") } else { String::new() };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_process::Target;

    fn named(text: &str) -> Result<TargetName, String> {
        text.parse()
    }

    #[test]
    fn a_target_is_a_pid_a_name_or_a_pod() {
        assert_eq!(named("1234"), Ok(TargetName::Pid(1234)));
        assert_eq!(named("server"), Ok(TargetName::Name("server".into())));
        assert_eq!(named("7zip"), Ok(TargetName::Name("7zip".into())));
        let pod = |namespace: Option<&str>, pod: &str, container: Option<&str>| TargetName::Pod {
            namespace: namespace.map(Into::into),
            pod: pod.into(),
            container: container.map(Into::into),
        };
        assert_eq!(named("pod:till-7f9"), Ok(pod(None, "till-7f9", None)));
        assert_eq!(named("pod:shop/till-7f9"), Ok(pod(Some("shop"), "till-7f9", None)));
        assert_eq!(named("pod:shop/till-7f9/till"), Ok(pod(Some("shop"), "till-7f9", Some("till"))));
        for text in ["server", "pod:a", "pod:b/a", "pod:b/a/c", "7"] {
            assert_eq!(named(text).expect("a target").to_string(), text);
        }
        for wrong in ["", "0", "99999999999", "pod:", "pod:/a", "pod:a/", "pod:a/b/", "pod:a/b/c/d"] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_means_one_process_or_says_which_there_are() {
        let listed = Listed::now().expect("listed");
        let me = std::process::id();
        assert!(listed.processes.iter().all(|p| p.pid != me));
        let open = || Running {
            name: "server".into(),
            is_go: true,
            ..Running::of(&Target::open(me).expect("this process"))
        };
        let name = TargetName::Name("server".into());
        let listed = |processes| Listed { processes, unreadable: 3 };
        assert_eq!(name.pick(&listed(vec![open()]), |_| None).expect("one"), me);
        let several = name.pick(&listed(vec![open(), open()]), |_| None).expect_err("two");
        assert_eq!(several.exit(), Exit::USAGE);
        assert_eq!(
            several.to_string(),
            format!("error: 2 processes are server\nhelp: give the pid of one: {me} server, {me} server")
        );
        // A Go program comes before others of that name, and these before none.
        let other = || Running { is_go: false, ..open() };
        assert_eq!(name.pick(&listed(vec![other(), open()]), |_| None).expect("the Go program"), me);
        assert_eq!(name.pick(&listed(vec![other()]), |_| None).expect("what there is"), me);
        let none = TargetName::Name("client".into()).pick(&listed(vec![open()]), |_| None).expect_err("none");
        assert_eq!(none.exit(), Exit::GONE);
        assert_eq!(
            none.to_string(),
            format!(
                "error: no Go program here is client; 3 processes may not be read, which requires root and CAP_SYS_PTRACE\n\
                 help: the Go programs here: {me} server"
            )
        );
        let place = |_: &Running| {
            let text = |text: &str| text.to_owned();
            Some(Place { namespace: text("shop"), pod: text("till-7f9"), container: Some(text("till")) })
        };
        for (text, found) in [
            ("pod:till-7f9", true),
            ("pod:shop/till-7f9", true),
            ("pod:shop/till-7f9/till", true),
            ("pod:shop/till-7f9/proxy", false),
            ("pod:bank/till-7f9", false),
            ("pod:till", false),
        ] {
            let pod = named(text).expect("a target");
            assert_eq!(pod.pick(&listed(vec![open()]), place).is_ok(), found, "{text}");
            assert!(pod.pick(&listed(vec![open()]), |_| None).is_err(), "{text}");
        }
    }
}
