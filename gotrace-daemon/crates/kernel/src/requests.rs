//! The kernel side's maps of requests.

use std::{
    collections::{HashMap, HashSet},
    os::fd::AsFd as _,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap as BpfHashMap, MapData},
};
use gotrace_common::{
    Account, GoroutineKey, OpenRequest, RequestConfig, RequestKey, RouteKey, RouteTimes, request::state,
};

use super::{Error, Kernel, batch, data, typed};

/// The maps; those that are read whole are kept as they are, for the commands that aya lacks.
pub(super) struct Maps {
    configs: Array<MapData, RequestConfig>,
    accounts: MapData,
    children: Array<MapData, u64>,
    open: MapData,
    routes: MapData,
    thresholds: BpfHashMap<MapData, RouteKey, u64>,
}

/// For how long a goroutine has been blocked that is not followed for a request any more that has ended.
const IDLE_NS: u64 = 1_000_000_000;

/// Goroutines that are followed at once as they were started for a request, with so many requests.
pub(super) fn children(requests: u32) -> u32 {
    requests / 2
}

/// Routes that there is room for, with so many requests.
pub(super) fn routes(requests: u32) -> u32 {
    (requests / 16).max(1)
}

impl Maps {
    /// `requests`: those that there is room for.
    pub fn take(ebpf: &mut Ebpf, requests: u32) -> Result<Self, Error> {
        let mut take = |name: &str| ebpf.take_map(name).ok_or_else(|| Error::Object(format!("map {name}")));
        let mut children: Array<MapData, u64> = typed(take("CHILDREN")?, "CHILDREN")?;
        let set = children.set(1, u64::from(self::children(requests)), 0);
        set.map_err(|e| Error::from_loader("set how many goroutines are followed", &e))?;
        Ok(Self {
            configs: typed(take("REQUEST_CONFIGS")?, "REQUEST_CONFIGS")?,
            accounts: data(take("ACCOUNTS")?)?,
            children,
            open: data(take("REQUESTS")?)?,
            routes: data(take("ROUTES")?)?,
            thresholds: typed(take("THRESHOLDS")?, "THRESHOLDS")?,
        })
    }

    fn each_open(&self, f: impl FnMut(&RequestKey, &OpenRequest)) -> Result<(), Error> {
        batch::for_each(self.open.fd().as_fd(), "open requests", f)
    }

    fn each_account(&self, f: impl FnMut(&GoroutineKey, &Account)) -> Result<(), Error> {
        batch::for_each(self.accounts.fd().as_fd(), "goroutines that serve requests", f)
    }
}

impl Kernel {
    /// Sets how requests of the process in `slot` are read, and when they are slow.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to write its map.
    pub fn configure_requests(&mut self, slot: u32, config: RequestConfig) -> Result<(), Error> {
        let set = self.requests.configs.set(slot, config, 0);
        set.map_err(|e| Error::from_loader("set how requests are read", &e))
    }

    /// Requests of a route are slow from this time on; the route's status is not looked at.
    ///
    /// # Errors
    /// [`Error::Failed`] when there is no room for more routes.
    pub fn set_threshold(&mut self, route: RouteKey, threshold_ns: u64) -> Result<(), Error> {
        let key = RouteKey { status: 0, ..route };
        let set = self.requests.thresholds.insert(key, threshold_ns, 0);
        set.map_err(|e| Error::from_loader("set when requests of a route are slow", &e))
    }

    /// Calls `f` with all routes and statuses, and what requests of each have taken. What changes meanwhile may be seen in
    /// its old state or its new one.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to read its map.
    pub fn routes(&self, f: impl FnMut(&RouteKey, &RouteTimes)) -> Result<(), Error> {
        batch::for_each(self.requests.routes.fd().as_fd(), "routes", f)
    }

    /// All requests that are open, with the accounts of their goroutines; those alone that have one. Goroutines that were
    /// started for others, and have been blocked for long, are not followed any more.
    ///
    /// # Errors
    /// As [`Self::routes`].
    pub fn open_requests(&mut self, now_ns: u64) -> Result<Vec<(RequestKey, OpenRequest, Account)>, Error> {
        let mut children = Vec::new();
        let counted = self.requests.children.get(&0, 0).unwrap_or(0);
        if counted != 0 {
            // Before the requests are: what a goroutine was started for, and is not among those, has ended.
            self.requests.each_account(|key, account| {
                children.extend((account.of.process != 0).then_some((*key, *account)));
            })?;
        }
        let mut open = Vec::new();
        self.requests.each_open(|key, request| open.push((*key, *request)))?;
        if counted != 0 {
            self.leave_children(&children, &open, now_ns)?;
        }
        let mut accounts = HashMap::new();
        if !open.is_empty() {
            self.requests.each_account(|key, account| accounts.extend([(*key, *account)]))?;
        }
        let account = |key: &RequestKey, request: &OpenRequest| {
            let goroutine = GoroutineKey { goid: request.goid, process: key.process, reserved: 0 };
            accounts.get(&goroutine).copied()
        };
        Ok(open.into_iter().filter_map(|(key, o)| Some((key, o, account(&key, &o)?))).collect())
    }

    /// Goroutines that were started for requests which have ended, and have been blocked for long, are not followed any more;
    /// the others are counted.
    fn leave_children(
        &mut self,
        children: &[(GoroutineKey, Account)],
        open: &[(RequestKey, OpenRequest)],
        now_ns: u64,
    ) -> Result<(), Error> {
        let since: HashMap<RequestKey, u64> = open.iter().map(|(key, open)| (*key, open.start_ns)).collect();
        let is_left = |account: &Account| {
            let Account { of, of_start_ns, open, spans, state, since_ns, .. } = account;
            // One that might begin to serve a request just now would lose it.
            let is_idle = *state == state::BLOCKED && now_ns.saturating_sub(*since_ns) >= IDLE_NS;
            let serves = *open != 0 || spans.iter().any(|span| *span != 0);
            since.get(of) != Some(of_start_ns) && is_idle && !serves
        };
        let accounts = self.requests.accounts.fd().as_fd();
        // One that has ended meanwhile is gone already.
        let left = children.iter().filter(|(key, of)| is_left(of) && batch::delete(accounts, key)).count();
        let set = self.requests.children.set(0, (children.len() - left) as u64, 0);
        set.map_err(|e| Error::from_loader("count the goroutines that are followed", &e))
    }

    /// Requests that are open, and since when.
    ///
    /// # Errors
    /// As [`Self::routes`].
    pub fn open_since(&self) -> Result<HashMap<RequestKey, u64>, Error> {
        let mut open = HashMap::new();
        self.requests.each_open(|key, request| open.extend([(*key, request.start_ns)]))?;
        Ok(open)
    }

    /// Goroutines of the process with this number that serve a request.
    ///
    /// # Errors
    /// As [`Self::routes`].
    pub fn serving(&self, process: u32) -> Result<HashSet<u64>, Error> {
        let mut goids = HashSet::new();
        self.requests.each_open(|key, open| goids.extend((key.process == process).then_some(open.goid)))?;
        Ok(goids)
    }

    /// Forgets what is known of requests of processes that `gone` names: those that are open, and with `routes` what was
    /// counted.
    ///
    /// # Errors
    /// As [`Self::routes`].
    pub fn forget_requests(&mut self, gone: impl Fn(u32) -> bool, routes: bool) -> Result<(), Error> {
        let Maps { accounts, open, routes: counted, thresholds, .. } = &self.requests;
        let (mut of_open, mut of_accounts, mut of_routes) = (Vec::new(), Vec::new(), Vec::new());
        let requests = &self.requests;
        requests.each_open(|key, _| of_open.extend(Some(*key).filter(|key| gone(key.process))))?;
        requests.each_account(|key, _| of_accounts.extend(Some(*key).filter(|key| gone(key.process))))?;
        if routes {
            self.routes(|key, _| of_routes.extend(Some(*key).filter(|key| gone(key.process))))?;
        }
        // What has ended meanwhile is gone already.
        let _ = of_open.iter().filter(|key| batch::delete(open.fd().as_fd(), *key)).count();
        let _ = of_accounts.iter().filter(|key| batch::delete(accounts.fd().as_fd(), *key)).count();
        let _ = of_routes.iter().filter(|key| batch::delete(counted.fd().as_fd(), *key)).count();
        if routes {
            let known: Vec<_> = thresholds.keys().filter_map(Result::ok).collect();
            for key in known.iter().filter(|key| gone(key.process)) {
                // As above.
                let _ = self.requests.thresholds.remove(key);
            }
        }
        Ok(())
    }
}
